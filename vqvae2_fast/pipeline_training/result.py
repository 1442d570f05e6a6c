"""Measures and the report of a pipeline that was just trained: by `train`, and by the demo."""

from __future__ import annotations

import copy
import json
import math
import platform
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

import vqvae2_fast
from vqvae2_fast import ops
from vqvae2_fast.data import in_order
from vqvae2_fast.files.durable import write_file
from vqvae2_fast.files.printable import short
from vqvae2_fast.metrics import evaluate_pipeline
from vqvae2_fast.metrics.accuracy import classification_accuracy
from vqvae2_fast.metrics.codes import use_of_codes
from vqvae2_fast.models.classifier import Classifier
from vqvae2_fast.modules.contexts import seeded
from vqvae2_fast.report.pipeline import report_pipeline
from vqvae2_fast.training import train
from vqvae2_fast.training.classifier import classifier_recipe, classifier_stage
from vqvae2_fast.training.cost import measure_step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vqvae2_fast.console.progress import Progress
    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.metrics.results import Evaluation
    from vqvae2_fast.report.html import Section
    from vqvae2_fast.report.pipeline import DrawnImages
    from vqvae2_fast.training.recipe import TrainedPipeline

__all__ = [
    "REPORT",
    "finish",
    "measured",
    "read_as_their_classes",
    "what_bounds",
    "write_json",
]

REPORT, _METRICS = "report.html", "metrics.json"
_BATCH = 256
_CLEARLY = 0.01  # of a best figure: less is within what validations vary by


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
    drawn: DrawnImages,
    out: Path,
    *,
    title: str,
    lead: str,
    more: Sequence[Section],
    start: float,
    since: str,
    seed: int,
    foot: str = "",
) -> None:
    """Write OUT/report.html with its pictures, and OUT/metrics.json.

    Args:
        start: When everything began, in `time.monotonic()`.
        lead, more, since: As in `report_pipeline`; the lead follows the time that it took.
    """
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
    write_json(out / _METRICS, metrics)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record, making its folder."""
    write_file(path, (json.dumps(values, indent=2) + "\n").encode())


def read_as_their_classes(
    drawn: DrawnImages,
    train_set: ImageSource,
    held_out: ImageSource,
    seconds: float,
    *,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """How many drawn images a small classifier of the real ones puts into the class asked for:
    for metrics.json, and in words.

    Args:
        drawn: With a row for a class, named as it is.
        seconds: About how long the classifier is trained at most.
    """
    names = train_set.class_names
    config, settings = classifier_recipe(train_set.image_shape, len(names), len(train_set))
    with seeded(seed):
        model = Classifier(config).to(device)
    stage = classifier_stage(model, train_set, held_out, settings)
    # A step's cost is measured by steps; training begins from other weights than they leave.
    state = copy.deepcopy(model.state_dict())
    steps = int(seconds / measure_step(stage, settings).seconds)
    model.load_state_dict(state)
    steps = max(1, min(steps, settings.steps))
    settings = replace(settings, steps=steps, warmup_steps=steps // 10, validate_every=steps)
    train(stage, settings, progress=progress)
    labels = torch.tensor(drawn.rows, dtype=torch.int64, device="cpu")
    of_drawn = classification_accuracy(model, [(drawn.images, labels)])
    of_held_out = classification_accuracy(model, in_order(held_out, _BATCH))
    words = [
        f"Classes: a small classifier of the training images puts {of_drawn.top1:.0%} of "
        f"{of_drawn.images} drawn images into the class that was asked for, and "
        f"{of_held_out.top1:.0%} of the held-out images into theirs."
    ]
    pairs = zip(names, of_drawn.by_class, of_held_out.by_class, strict=True)
    lost = [name for name, own, real in pairs if own <= 1 / len(names) and own < real / 2]
    if lost:
        words.append(
            f"Not read as what they are: {', '.join(map(short, lost[:8]))}. More images of these "
            "classes, or a larger guidance_scale, may help."
        )
    return {"drawn": asdict(of_drawn), "held_out": asdict(of_held_out), "steps": steps}, words


def what_bounds(
    trained: TrainedPipeline, evaluation: Evaluation, most_steps: Mapping[str, int]
) -> list[str]:
    """What keeps the drawn images from being better, a sentence for each model.

    Args:
        most_steps: Of each prior's run, after which it would overfit.
    """
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
        elif steps >= most_steps[f"prior_{name}"]:
            text += (
                "it has seen each image as often as it can without overfitting. More images would "
                "help, more minutes would not."
            )
        else:
            text += "it does not overfit yet, so more minutes would help."
        found.append(text)
    return found


def _validated(line: Mapping[str, Any]) -> bool:
    return math.isfinite(line.get("val_bits_per_image", math.nan))
