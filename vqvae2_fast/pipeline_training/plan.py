"""What is trained on images, for how long, and why: decided once, and kept in plan.json."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.console.words import byte_size, number, together
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.report.pipeline import rows_drawn
from vqvae2_fast.sampling.pipeline import Pipeline, sample_images
from vqvae2_fast.training.cost import state_bytes
from vqvae2_fast.training.extraction import Variants
from vqvae2_fast.training.timed import time_priors, time_vqvae

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from vqvae2_fast.data.own_images import OwnImages
    from vqvae2_fast.training.config import TrainConfig
    from vqvae2_fast.training.preset import Preset, PresetTraining

__all__ = [
    "CLASSIFYING",
    "PLAN",
    "READING",
    "check_disk",
    "check_minutes",
    "plan_in_words",
    "planned_steps",
    "planned_training",
    "read_plan",
    "threads_of_cpu",
    "timed_plan",
]

PLAN = "plan.json"
_LEAST_STEPS = 100  # of each model: fewer leave nothing that draws
# Parts of the time that reading the images, encoding them, and drawing for the report may take, and
# the classifier that reads what was drawn. The rest is shared by the trainings. In the demo the
# bottom prior leaves most to mend.
READING, _ENCODING, _DRAWING, CLASSIFYING = 0.1, 0.1, 0.04, 0.03
_SHARES = {"vqvae": 0.35, "prior_top": 0.2, "prior_bottom": 0.45}
# The most passes over the images: more make a prior overfit. With 535 avatars it began after 11
# (top) and 21 (bottom), at the full learning rate. The VQ-VAE gets the time that is left.
_MOST_PASSES = {"prior_top": 15, "prior_bottom": 30}
_MANY_PASSES = 10  # after which the priors of small sets overfit without dropout, see emoji32
_VALIDATED = 500  # held-out images
# Held-out images that the report measures, and items of a validation's step that take its time.
_MEASURED, _ITEMS_OF_A_STEP = 300, 16
_OF_THE_REPORT = 4.0  # seconds for pictures


def read_plan(folder: Path, *, size: int | None, flip: bool, seed: int) -> dict[str, Any]:
    """What was decided when a folder was begun; empty for a new one."""
    try:
        plan = read_object(folder / PLAN)
    except FileNotFoundError:
        return {}
    for argument, given in (("size", size), ("flip", flip), ("seed", seed)):
        if given is not None and given != plan[argument]:
            raise ValueError(
                f"{argument}: expected {plan[argument]}, with which {folder} was begun, got "
                f"{given}. Name another folder for another {argument}."
            )
    return plan


def timed_plan(
    preset: Preset,
    images: OwnImages,
    device: torch.device,
    threads: int,
    seconds: float,
    recommended: Mapping[str, Any],
) -> dict[str, Any]:
    """What steps, encoding and drawing take here, and what follows from it.

    Args:
        seconds: Time for everything.
    """
    several = torch.get_num_threads()
    tried = [threads] if threads or device.type != "cpu" else sorted({1, several})
    times = {}
    for count in tried:
        with threads_of_cpu(count):
            times[count] = time_vqvae(preset, images.train_set, device)
    best = min(times, key=lambda count: times[count][1])
    vqvae, step, encode = times[best]
    with threads_of_cpu(best):
        priors, steps = time_priors(preset, vqvae, images.train_set.class_names, device)
        labels = [0] * 4 if images.train_set.class_names else None
        began = time.monotonic()
        sample_images(Pipeline(vqvae, priors), 4, labels=labels, **recommended)
        draw = (time.monotonic() - began) / 4
    count = len(images.train_set)
    copies = preset.training.variants.copies
    if encode * count * (1 + copies) > _ENCODING * seconds:
        copies = 0
    rows = rows_drawn(images.train_set.class_names)
    columns = max(4, min(12, int(_DRAWING * seconds / (draw * rows))))
    scored = _MEASURED * (encode + sum(steps.values()) / _ITEMS_OF_A_STEP)
    if len(images.train_set.class_names) > 1:
        scored += CLASSIFYING * seconds
    return {
        "step_seconds": {"vqvae": step, **steps},
        "encode_seconds": encode,
        "threads": best,
        "seconds_by_threads": {str(count): own[1] for count, own in times.items()},
        "copies": copies,
        "images": min(count, max(1, int(2 * _ENCODING * seconds / encode))),
        "columns": columns,
        "report_seconds": draw * (rows * columns + 10) + scored + _OF_THE_REPORT,
        "disk_bytes": _disk_bytes(preset, (vqvae, *priors), count * (1 + copies)),
    }


def _disk_bytes(preset: Preset, models: Sequence[nn.Module], records: int) -> int:
    """About what a run writes: for each model two checkpoints, of which the older one is deleted
    once the newer one is whole, and the codes, of two bytes each."""
    trainings = (preset.training.vqvae, *preset.training.priors)
    states = sum(map(state_bytes, models, trainings))
    codes = sum(height * width for height, width in preset.vqvae.level_sizes)
    return 2 * states + 2 * codes * records


def check_disk(folder: Path, needed: int) -> None:
    """Raises ValueError if the disk of a folder, which may not exist yet, has less room."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(
            f"out: expected {byte_size(needed)} free on the disk of {folder}, for checkpoints and "
            f"codes, got {byte_size(free)}. Free some, or name a folder on another disk."
        )


def planned_training(preset: Preset, plan: Mapping[str, Any]) -> PresetTraining:
    """The trainings of a preset with what was decided for these images."""
    variants = preset.training.variants
    if not plan["copies"]:
        variants = Variants(flip=variants.flip)

    def validated(settings: TrainConfig) -> TrainConfig:
        return replace(settings, validate_items=_VALIDATED, keep=1)

    return replace(
        preset.training,
        vqvae=validated(preset.training.vqvae),
        priors=tuple(map(validated, preset.training.priors)),
        variants=variants,
    )


def check_minutes(minutes: float, left: float, step_seconds: Mapping[str, float]) -> None:
    """Raises ValueError if a model would get too few steps in the seconds that are left."""
    least = max(_LEAST_STEPS * own / _SHARES[run] for run, own in step_seconds.items())
    if left < least:
        raise ValueError(
            f"minutes: expected {number(minutes + (least - left) / 60, 2)} or more, in which each "
            f"model is trained for {_LEAST_STEPS} steps on this machine, got {minutes:g}. Give "
            "more time, or take a smaller size."
        )


def planned_steps(
    preset: Preset, left: float, step_seconds: Mapping[str, float], images: int
) -> dict[str, Any]:
    """How the seconds that are left are shared, and the settings of models that follow from it."""
    trainings = dict(
        zip(step_seconds, (preset.training.vqvae, *preset.training.priors), strict=True)
    )
    most = {
        run: max(_LEAST_STEPS, round(passes * images / trainings[run].batch_size))
        for run, passes in _MOST_PASSES.items()
    }
    shares = {
        run: min(_SHARES[run], count * step_seconds[run] / left) for run, count in most.items()
    }
    shares = {"vqvae": 1 - sum(shares.values()), **shares}
    steps = {run: int(left * shares[run] / own) for run, own in step_seconds.items()}
    passes = {run: count * trainings[run].batch_size / images for run, count in steps.items()}
    return {
        "shares": shares,
        "most_steps": most,
        "steps": steps,
        "passes": passes,
        "dropout": 0.1 if passes["prior_top"] > _MANY_PASSES else 0.0,
        "quantize_after": min(preset.vqvae.quantize_after, steps["vqvae"] // 10),
    }


def plan_in_words(
    plan: Mapping[str, Any],
    images: OwnImages,
    name: str,
    preset: Preset,
    device: torch.device,
) -> list[str]:
    """What is trained on what, and why, in a few lines."""
    config, side = preset.vqvae, plan["size"]
    maps = together([f"{height}x{width}" for height, width in config.level_sizes])
    steps = ", ".join(
        f"{run.replace('_', ' ')} {count:,} steps ({number(plan['passes'][run], 2)} passes)"
        for run, count in plan["steps"].items()
    )
    times = plan["seconds_by_threads"]
    threads = ""
    if device.type == "cpu":
        threads = f" on {plan['threads']} thread{'s' if plan['threads'] > 1 else ''}"
        others = [count for count in times if int(count) != plan["threads"]]
        if others:
            slower = times[others[0]] / times[str(plan["threads"])]
            threads += f" (a step takes {number(slower, 2)} times as long on {others[0]})"
    return [
        f"images: {images.described}",
        *images.notes,
        f"size: {side}x{side}"
        + (", to which images are scaled and cropped (another one by size)" * images.scaled),
        "mirrored images: "
        + ("yes" if plan["flip"] else "no (flip allows them where left and right mean the same)"),
        f"models: those of {name}; an image becomes maps of {maps} codes, of "
        f"{config.num_embeddings} each"
        + (f"; each image is encoded with {plan['copies']} altered copies" * bool(plan["copies"])),
        f"time: {plan['minutes']:g} minutes{threads}: {steps}",
    ]


@contextmanager
def threads_of_cpu(count: int) -> Iterator[None]:
    """This many threads of the CPU in the block; 0 leaves their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
