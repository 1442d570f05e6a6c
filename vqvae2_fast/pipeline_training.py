"""From images to a pipeline that draws them, in a given time: what `vqvae2-fast train` calls.

The parts are elsewhere: `data/own_images.py` looks at the images, `presets/fitting.py` chooses the
models, `training/recipe.py` trains them, `training/timed.py` shares out the time, and
`report/pipeline.py` shows the result. Here stands what decides.
"""

from __future__ import annotations

import json
import math
import platform
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import vqvae2_fast
from vqvae2_fast import ops
from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.console.progress import Progress
from vqvae2_fast.console.words import number as shown
from vqvae2_fast.console.words import together
from vqvae2_fast.data.images import ImageSource, ImageSubset, evenly, spread_evenly
from vqvae2_fast.data.own_images import LARGEST_SIDE, SMALLEST_SIDE, OwnImages, open_own_images
from vqvae2_fast.files.durable import write_file
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.files.kinds import check_field, integer, number
from vqvae2_fast.metrics import evaluate_pipeline
from vqvae2_fast.metrics.codes import use_of_codes
from vqvae2_fast.presets.fitting import fitting_preset
from vqvae2_fast.report.html import Section
from vqvae2_fast.report.pipeline import draw_rows, report_pipeline, rows_drawn
from vqvae2_fast.sampling.pipeline import Pipeline, sample_images
from vqvae2_fast.training.cost import free_memory
from vqvae2_fast.training.recipe import TrainedPipeline, train_pipeline
from vqvae2_fast.training.timed import TimeBudget, run_names, time_priors, time_vqvae

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vqvae2_fast.metrics.results import Evaluation
    from vqvae2_fast.training.config import TrainConfig
    from vqvae2_fast.training.preset import Preset, PresetTraining

__all__ = ["WITH_CLASSES", "finish", "measured", "train"]

_PLAN, _METRICS, _REPORT = "plan.json", "metrics.json", "report.html"
_LEAST_STEPS = 100  # of each model: fewer leave nothing that draws
# Sides that are learnt in minutes without and with a GPU; larger ones have to be asked for.
_USUAL_SIDE = {"cpu": 64, "cuda": 128}
# Parts of the time that reading the images, encoding them, and drawing for the report may take. The
# rest is shared by the trainings. In the demo the bottom prior leaves most to mend.
_READING, _ENCODING, _DRAWING = 0.1, 0.1, 0.04
_SHARES = {"vqvae": 0.35, "prior_top": 0.2, "prior_bottom": 0.45}
_VALIDATED, _EVALUATED = 500, 300  # held-out images
# Passes over the images after which the priors of small sets overfit without dropout, see emoji32.
_MANY_PASSES = 10
_CLEARLY = 0.01  # of a best figure: less is within what validations vary by
# Minutes of training leave priors that spread their draws; these settings give images that look
# more like the real ones (temperature 1 without guidance is the plain model). Values are for top,
# then bottom. KD-EfficientNetLite0 of 1,400 samples of the demo: 0.195, precision 0.55, recall
# 0.14.
WITH_CLASSES: dict[str, Any] = {"temperature": (0.65, 0.7), "guidance_scale": (3.0, 2.0)}
_WITHOUT_CLASSES: dict[str, Any] = {"temperature": (0.8, 0.8)}


def train(
    data: str | Path | Tensor | ImageSource,
    minutes: float = 20.0,
    *,
    size: int | None = None,
    out: str | Path | None = None,
    flip: bool = False,
    skip_corrupt: bool = False,
    seed: int = 0,
    threads: int = 0,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> TrainedPipeline:
    """Train a VQ-VAE-2 and its priors on images in a given time, and report what they draw.

    Models and settings follow from the images, and the numbers of steps from their measured time.
    OUT/pipeline is what `load` and every command take, and OUT/report.html shows it. The same call
    continues what was interrupted; with more minutes it trains the priors further.

    Args:
        data: A folder of images (flat, one subfolder for each class, or train/ and held_out/), the
            name of a source such as "emoji", uint8 images `[N, C, H, W]`, or a set of images.
        minutes: Time for everything, from reading the images to the report.
        size: Height and width in pixels to which images are scaled and cropped; by default their
            own, and at most 64 on a CPU or 128 on a GPU.
        out: The folder for everything; by default runs/ and the name of the data.
        flip: Whether the images may be mirrored left to right, as letters may not.
        skip_corrupt: Leave out files of a folder that cannot be decoded, with a warning.
        seed: Seed of the weights, the order of the data, and the samples.
        threads: Threads of the CPU; 0 takes one or all, whichever is faster now.

    Raises:
        ValueError: Images that cannot be trained on, too few minutes, or an `out` that was begun
            with other images or arguments.
        TypeError: What is no set of images.
        DivergedError, InterruptedRun, OSError, RuntimeError: As `training.train`.
    """
    start = time.monotonic()
    check_field("minutes", minutes, number(above=0))
    check_field("threads", threads, integer(0))
    if size is not None:
        check_field("size", size, integer(SMALLEST_SIDE, LARGEST_SIDE))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device, progress, seconds = torch.device(device), progress or Progress(), 60 * minutes
    label = Path(data).name if isinstance(data, str | Path) else "images"
    folder = Path(out) if out is not None else Path("runs") / label.replace(":", "-")
    plan = _read_plan(folder, size=size, flip=flip, seed=seed)
    free = free_memory(torch.device("cpu"))
    images = open_own_images(
        data,
        plan.get("size", size),
        _USUAL_SIDE[device.type],
        skip_corrupt=skip_corrupt,
        cache=folder / "images",
        seconds=_READING * seconds,
        most_bytes=None if free is None else free // 4,
        most=plan.get("read"),
        progress=progress,
    )
    shape, classes = images.train_set.image_shape, images.train_set.class_names
    name, preset = fitting_preset(shape, len(images.train_set), flip=flip)
    recommended = WITH_CLASSES if classes else _WITHOUT_CLASSES
    if not plan:
        progress.say("timing the first steps ...")
        plan = _measured(preset, images, device, threads, seconds, recommended)
        plan |= {"size": shape[1], "read": len(images.train_set), "flip": flip, "seed": seed}
        plan["minutes"] = minutes
    preset = replace(preset, training=_training(preset, plan))
    train_set: ImageSource = images.train_set
    if plan["images"] < len(train_set):
        train_set = ImageSubset(train_set, evenly(len(train_set), plan["images"]))
    encoded = len(train_set) * preset.training.variants.count
    budget = TimeBudget(
        start + seconds - plan["report_seconds"],
        plan["step_seconds"],
        _SHARES,
        plan["encode_seconds"] * encoded,
        further=minutes > plan["minutes"],
    )
    names = run_names(preset)
    if "words" not in plan:
        _check_minutes(minutes, budget)
        plan |= _chosen(preset, budget, len(train_set))
        plan["words"] = _in_words(plan, images, name, preset, minutes, device)
        _write(folder / _PLAN, plan)
    progress.say("\n".join(plan["words"]))
    vqvae = replace(preset.vqvae, quantize_after=plan["quantize_after"])
    dropout = {"dropout": plan["dropout"], "attention_dropout": plan["dropout"]}
    priors = tuple(replace(prior, **dropout) for prior in preset.priors)
    before = [latest(folder / run) for run in names]
    with _threads(plan["threads"] if device.type == "cpu" else 0):
        trained = train_pipeline(
            replace(preset, vqvae=vqvae, priors=priors),
            train_set,
            images.held_out,
            folder,
            seed=seed,
            resume=True,
            device=device,
            progress=progress,
            recommended=recommended,
            budget=budget,
        )
        if before == [latest(folder / run) for run in names] and (folder / _REPORT).exists():
            progress.say("everything was trained before; more minutes train the priors further")
            return trained
        since = " since it was continued" if any(before) else ""
        held_out = spread_evenly(images.held_out, _EVALUATED)
        evaluation, metrics = measured(trained, held_out, device=device, progress=progress)
        metrics |= {"preset": name, "seed": seed, "minutes": minutes, "plan": plan["words"]}
        metrics["bounds"] = bounds = _bounds(trained, evaluation)
        finish(
            trained,
            evaluation,
            metrics,
            train_set,
            held_out,
            folder,
            title=f"VQ-VAE-2 on {label}",
            lead=" ".join(f"{line[0].upper()}{line[1:]}." for line in plan["words"]),
            columns=plan["columns"],
            more=[Section("What bounds the images", " ".join(bounds))],
            start=start,
            since=since,
            seed=seed,
            progress=progress,
        )
        _write(folder / _PLAN, {**plan, "minutes": max(minutes, plan["minutes"])})
    return trained


def measured(
    trained: TrainedPipeline,
    held_out: ImageSource,
    *,
    device: torch.device,
    codecs: Sequence[str] = (),
    progress: Progress,
) -> tuple[Evaluation, dict[str, Any]]:
    """Measures of a pipeline that was just trained; the second is what metrics.json begins with."""
    evaluation = evaluate_pipeline(
        trained.vqvae, trained.priors, held_out, codecs=codecs, progress=progress
    )
    return evaluation, {
        "held_out": evaluation.as_json(),
        "training_codes": {name: asdict(use) for name, use in use_of_codes(trained.codes).items()},
        "samples": dict(trained.recommended),
        "machine": {
            "vqvae2_fast": vqvae2_fast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "simd": ops.simd_level(),
        },
    }


def finish(
    trained: TrainedPipeline,
    evaluation: Evaluation,
    metrics: dict[str, Any],
    train_set: ImageSource,
    held_out: ImageSource,
    out: Path,
    *,
    title: str,
    lead: str,
    columns: int,
    more: Sequence[Section],
    start: float,
    since: str,
    seed: int,
    progress: Progress,
    foot: str = "",
) -> None:
    """Draw images, and write OUT/report.html with its pictures, and OUT/metrics.json.

    Args:
        start: When everything began, in `time.monotonic()`.
        lead, more, since: As in `report_pipeline`; the lead follows the time that it took.
    """
    drawn = draw_rows(trained.pipeline, columns, seed=seed, progress=progress)
    taken = {**trained.seconds, "all": time.monotonic() - start}
    machine = "  ·  ".join(f"{name} {value}" for name, value in metrics["machine"].items())
    metrics["nearest"] = report_pipeline(
        out,
        title,
        f"Trained in {taken['all'] / 60:.1f} minutes{since}. {lead}",
        trained.pipeline,
        drawn,
        train_set=train_set,
        held_out=held_out,
        evaluation=evaluation,
        logs=trained.logs,
        seconds=taken,
        since=since,
        more=more,
        foot=f"{machine}. {foot}".strip(),
        seed=seed,
    )
    taken["all"] = time.monotonic() - start
    metrics["seconds"] = {name: round(value, 1) for name, value in taken.items()}
    metrics["resumed"] = bool(since)
    _write(out / _METRICS, metrics)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(values, indent=2) + "\n").encode())


def _read_plan(folder: Path, *, size: int | None, flip: bool, seed: int) -> dict[str, Any]:
    """What was decided when a folder was begun; empty for a new one."""
    try:
        plan = read_object(folder / _PLAN)
    except FileNotFoundError:
        return {}
    for argument, given in (("size", size), ("flip", flip), ("seed", seed)):
        if given is not None and given != plan[argument]:
            raise ValueError(
                f"{argument}: expected {plan[argument]}, with which {folder} was begun, got "
                f"{given}. Name another folder for another {argument}."
            )
    return plan


def _measured(
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
        with _threads(count):
            times[count] = time_vqvae(preset, images.train_set, device)
    best = min(times, key=lambda count: times[count][1])
    vqvae, step, encode = times[best]
    with _threads(best):
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
    scored = _EVALUATED * (encode + sum(steps.values()) / 16)
    return {
        "step_seconds": {"vqvae": step, **steps},
        "encode_seconds": encode,
        "threads": best,
        "seconds_by_threads": {str(count): own[1] for count, own in times.items()},
        "copies": copies,
        "images": min(count, max(1, int(2 * _ENCODING * seconds / encode))),
        "columns": columns,
        "report_seconds": draw * (rows * columns + 10) + scored + 4,
    }


def _training(preset: Preset, plan: Mapping[str, Any]) -> PresetTraining:
    """The trainings of a preset with what was decided for these images."""
    variants = preset.training.variants
    if not plan["copies"]:
        variants = replace(type(variants)(), flip=variants.flip)

    def validated(settings: TrainConfig) -> TrainConfig:
        return replace(settings, validate_items=_VALIDATED, keep=1)

    return replace(
        preset.training,
        vqvae=validated(preset.training.vqvae),
        priors=tuple(map(validated, preset.training.priors)),
        variants=variants,
    )


def _check_minutes(minutes: float, budget: TimeBudget) -> None:
    """Raises ValueError if a model would get too few steps."""
    least = max(
        _LEAST_STEPS * seconds / budget.shares[run] for run, seconds in budget.step_seconds.items()
    )
    left = budget.deadline - time.monotonic() - budget.between
    if left < least:
        raise ValueError(
            f"minutes: expected {shown(minutes + (least - left) / 60, 2)} or more, in which each "
            f"model is trained for {_LEAST_STEPS} steps on this machine, got {minutes:g}. Give "
            "more time, or take a smaller size."
        )


def _chosen(preset: Preset, budget: TimeBudget, images: int) -> dict[str, Any]:
    """The steps that are planned, and the settings of models that follow from them."""
    trainings = (preset.training.vqvae, *preset.training.priors)
    left = budget.deadline - time.monotonic() - budget.between
    steps = {
        run: int(left * budget.shares[run] / seconds)
        for run, seconds in budget.step_seconds.items()
    }
    passes = {
        run: steps[run] * own.batch_size / images for run, own in zip(steps, trainings, strict=True)
    }
    return {
        "steps": steps,
        "passes": passes,
        "dropout": 0.1 if passes["prior_top"] > _MANY_PASSES else 0.0,
        "quantize_after": min(preset.vqvae.quantize_after, steps["vqvae"] // 10),
    }


def _in_words(
    plan: Mapping[str, Any],
    images: OwnImages,
    name: str,
    preset: Preset,
    minutes: float,
    device: torch.device,
) -> list[str]:
    """What is trained on what, and why, in a few lines."""
    config, side = preset.vqvae, plan["size"]
    maps = together([f"{height}x{width}" for height, width in config.level_sizes])
    steps = ", ".join(
        f"{run.replace('_', ' ')} {count:,} steps ({shown(plan['passes'][run], 2)} passes)"
        for run, count in plan["steps"].items()
    )
    times = plan["seconds_by_threads"]
    threads = ""
    if device.type == "cpu":
        threads = f" on {plan['threads']} thread{'s' if plan['threads'] > 1 else ''}"
        others = [count for count in times if int(count) != plan["threads"]]
        if others:
            slower = times[others[0]] / times[str(plan["threads"])]
            threads += f" (a step takes {shown(slower, 2)} times as long on {others[0]})"
    return [
        f"images: {images.described}",
        *images.notes,
        f"size: {side}x{side}, to which all images are scaled and cropped; "
        "another one is chosen by size",
        "mirrored images: "
        + ("yes" if plan["flip"] else "no; flip allows them where left and right mean the same"),
        f"models: those of {name}; an image becomes maps of {maps} codes, of "
        f"{config.num_embeddings} each"
        + (f"; each image is encoded with {plan['copies']} altered copies" * bool(plan["copies"])),
        f"time: {minutes:g} minutes{threads}: {steps}",
    ]


def _bounds(trained: TrainedPipeline, evaluation: Evaluation) -> list[str]:
    """What keeps the drawn images from being better, a sentence for each model."""
    found = [
        f"VQ-VAE: reconstructions reach {evaluation.reconstruction.psnr:.1f} dB, and no drawn "
        "image is sharper than they are."
    ]
    for name, own in evaluation.levels.items():
        log = trained.logs[f"prior_{name}"]
        bits = [(line["val_bits_per_image"], line["step"]) for line in log if _validated(line)]
        (best, step), (last, steps) = min(bits), bits[-1]
        text = f"Prior {name}: {own.bits_per_image:.0f} bits per held-out image"
        text += f", {own.marginal_bits_per_image:.0f} by the frequency of codes alone; "
        if last > (1 + _CLEARLY) * best:
            text += (
                f"it overfits after step {step:,} of {steps:,}, whose weights are kept. More "
                "images would help, more minutes would not."
            )
        else:
            text += "it does not overfit yet, so more minutes would help."
        found.append(text)
    return found


def _validated(line: Mapping[str, Any]) -> bool:
    return math.isfinite(line.get("val_bits_per_image", math.nan))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """This many threads of the CPU in the block; 0 leaves their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
