"""What `vqvae2-fast train` calls: looks at the images, plans, trains and reports."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.console.progress import Progress
from vqvae2_fast.data.images import ImageSource, ImageSubset, evenly, spread_evenly
from vqvae2_fast.data.own_images import LARGEST_SIDE, SMALLEST_SIDE, open_own_images
from vqvae2_fast.files.kinds import check_field, integer, number
from vqvae2_fast.pipeline_training.plan import (
    CLASSIFYING,
    PLAN,
    READING,
    check_disk,
    check_minutes,
    plan_in_words,
    planned_steps,
    planned_training,
    read_plan,
    threads_of_cpu,
    timed_plan,
)
from vqvae2_fast.pipeline_training.result import (
    REPORT,
    finish,
    measured,
    read_as_their_classes,
    what_bounds,
    write_json,
)
from vqvae2_fast.presets.fitting import fitting_preset
from vqvae2_fast.report.grids import picture_of_reconstructions, sample_grid
from vqvae2_fast.report.html import Section
from vqvae2_fast.report.pictures import write_picture
from vqvae2_fast.report.pipeline import draw_rows
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.training.cost import free_memory
from vqvae2_fast.training.recipe import TrainedPipeline, train_pipeline
from vqvae2_fast.training.timed import TimeBudget, run_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.models.prior import Prior
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["train"]

_EVALUATED = 300  # held-out images
SO_FAR = "learning.png"  # in the folder, while models are trained
_SHOWN = 24  # held-out images above their reconstructions
# Sides that are learnt in minutes without and with a GPU; larger ones have to be asked for.
_USUAL_SIDE = {"cpu": 64, "cuda": 128}
# Settings to draw with, for top and bottom. Of 535 avatars and two minutes of processor time, the
# demo's (temperature 0.65 and 0.7, guidance 3 and 2) left two of ten classes blank.
_RECOMMENDED: dict[str, Any] = {"temperature": (1.0, 0.8)}
_GUIDED: dict[str, Any] = {**_RECOMMENDED, "guidance_scale": (1.5, 1.0)}


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
    plan = read_plan(folder, size=size, flip=flip, seed=seed)
    free = free_memory(torch.device("cpu"))
    images = open_own_images(
        data,
        plan.get("size", size),
        _USUAL_SIDE[device.type],
        skip_corrupt=skip_corrupt,
        cache=folder / "images",
        seconds=READING * seconds,
        most_bytes=None if free is None else free // 4,
        most=plan.get("read"),
        progress=progress,
    )
    shape, classes = images.train_set.image_shape, images.train_set.class_names
    name, preset = fitting_preset(shape, len(images.train_set), flip=flip)
    recommended = _GUIDED if classes else _RECOMMENDED
    if not plan:
        progress.say("timing the first steps ...")
        plan = timed_plan(preset, images, device, threads, seconds, recommended)
        plan |= {"size": shape[1], "read": len(images.train_set), "flip": flip, "seed": seed}
        plan["minutes"] = minutes
    preset = replace(preset, training=planned_training(preset, plan))
    train_set: ImageSource = images.train_set
    if plan["images"] < len(train_set):
        train_set = ImageSubset(train_set, evenly(len(train_set), plan["images"]))
    deadline = start + seconds - plan["report_seconds"]
    between = plan["encode_seconds"] * len(train_set) * preset.training.variants.count
    if "words" not in plan:
        left = deadline - between - time.monotonic()
        check_minutes(minutes, left, plan["step_seconds"])
        check_disk(folder, plan["disk_bytes"])
        plan |= planned_steps(preset, left, plan["step_seconds"], len(train_set))
        plan["words"] = plan_in_words(plan, images, name, preset, device)
        write_json(folder / PLAN, plan)
    progress.say("\n".join(plan["words"]))
    progress.say(f"what it has learnt so far: {folder / SO_FAR}, which each validation renews")
    vqvae = replace(preset.vqvae, quantize_after=plan["quantize_after"])
    dropout = {"dropout": plan["dropout"], "attention_dropout": plan["dropout"]}
    priors = tuple(replace(prior, **dropout) for prior in preset.priors)
    budget = TimeBudget(
        deadline,
        plan["step_seconds"],
        plan["shares"],
        plan["most_steps"],
        between,
        further=minutes > plan["minutes"],
    )
    names = run_names(preset)
    before = [latest(folder / run) for run in names]

    def show(vqvae: VQVAE2, priors: Sequence[Prior]) -> None:
        """A picture of what the models have learnt so far; nothing is drawn by half of them."""
        path = folder / SO_FAR
        if not priors:
            picture_of_reconstructions(vqvae, images.held_out, path, _SHOWN)
        elif len(priors) == len(preset.priors):
            pipeline = Pipeline(vqvae, list(priors), classes, recommended)
            drawn = draw_rows(pipeline, plan["columns"], seed=seed)
            write_picture(path, sample_grid(drawn.images, drawn.rows, drawn.names))

    with threads_of_cpu(plan["threads"] if device.type == "cpu" else 0):
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
            on_validation=show,
        )
        if before == [latest(folder / run) for run in names] and (folder / REPORT).exists():
            progress.say("everything was trained before")
            return trained
        since = " since it was continued" if any(before) else ""
        held_out = spread_evenly(images.held_out, _EVALUATED)
        evaluation, metrics = measured(trained, held_out, device=device, progress=progress)
        metrics |= {"preset": name, "seed": seed, "minutes": minutes, "plan": plan["words"]}
        bounds = what_bounds(trained, evaluation, plan["most_steps"])
        with progress.task("draw", 1) as task:
            drawn = draw_rows(trained.pipeline, plan["columns"], seed=seed)
            task.update(1)
        # Rows of classes that come in groups are no classes.
        if len(classes) > 1 and drawn.names == classes:
            metrics["classes"], words = read_as_their_classes(
                drawn,
                train_set,
                held_out,
                CLASSIFYING * seconds,
                device=device,
                seed=seed,
                progress=progress,
            )
            bounds += words
        metrics["bounds"] = bounds
        finish(
            trained,
            evaluation,
            metrics,
            train_set,
            held_out,
            drawn,
            folder,
            title=f"VQ-VAE-2 on {label}",
            lead=" ".join(f"{line[0].upper()}{line[1:]}." for line in plan["words"]),
            more=[Section("What bounds the images", " ".join(bounds))],
            start=start,
            since=since,
            seed=seed,
        )
        (folder / SO_FAR).unlink(missing_ok=True)
        write_json(folder / PLAN, {**plan, "minutes": max(minutes, plan["minutes"])})
    return trained
