"""The report of a pipeline that was just trained: what it draws, and what that is worth.

`vqvae2-fast train` and `demo` write it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from vqvae2_fast.data import in_order
from vqvae2_fast.data.groups import group_names, spread_over_groups
from vqvae2_fast.data.images import evenly, spread_evenly, to_float
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.ops import nearest_code
from vqvae2_fast.report.curves import plot_curves
from vqvae2_fast.report.evaluation import code_costs
from vqvae2_fast.report.grids import image_grid, picture_of_reconstructions, sample_grid
from vqvae2_fast.report.html import Section, write_report
from vqvae2_fast.report.pictures import write_picture
from vqvae2_fast.sampling.fill import fill
from vqvae2_fast.sampling.pipeline import sample_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.metrics.results import Evaluation
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["DrawnImages", "draw_rows", "report_pipeline", "rows_drawn"]

_ROWS = 24  # at most, in a picture of samples
_COMPLETED, _COMPLETIONS = 6, 3
_COMPARED = 12
_MOST_COMPARED = 20_000  # training images
_SIDE = 16  # pixels to which images are reduced before they are compared


@dataclass(frozen=True)
class DrawnImages:
    """Images in [-1, 1] with the number of the row that each belongs to, and the rows' names."""

    images: Tensor
    rows: list[int]
    names: tuple[str, ...]


def rows_drawn(class_names: Sequence[str]) -> int:
    """How many rows `draw_rows` draws."""
    return min(_ROWS, len(group_names(class_names))) or 4


def draw_rows(pipeline: Pipeline, columns: int, *, seed: int = 0) -> DrawnImages:
    """New images with the pipeline's recommended settings, `columns` of each class.

    Of classes in groups each row is a group, its images of classes spread over it; of more than 24
    rows, 24 are taken. Without classes there are four rows.
    """
    device = device_of(pipeline.priors[0])
    names, labels = group_names(pipeline.class_names), None
    rows = [0] * (columns * rows_drawn(()))
    if names:
        by_group = spread_over_groups(pipeline.class_names, columns)
        shown = evenly(len(names), _ROWS).tolist()
        rows = [row for row in shown for _ in by_group[row]]
        flat = [label for row in shown for label in by_group[row]]
        labels = torch.tensor(flat, device=device, dtype=torch.int64)
    images = sample_images(pipeline, len(rows), labels=labels, seed=seed, **pipeline.recommended)
    return DrawnImages(images.cpu(), rows, names)


def _in_words(recommended: Mapping[str, Any]) -> str:
    """Settings to draw with, such as "temperature 0.65 and 0.7 (top and bottom)"."""
    parts = [
        f"{name.replace('_', ' ')} {' and '.join(f'{value:g}' for value in values)}"
        for name, values in recommended.items()
    ]
    return f"{', '.join(parts)} (top and bottom)" if parts else "the plain model"


def report_pipeline(
    out: Path,
    title: str,
    lead: str,
    pipeline: Pipeline,
    drawn: DrawnImages,
    *,
    train_set: ImageSource,
    held_out: ImageSource,
    evaluation: Evaluation,
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    seconds: Mapping[str, float],
    since: str = "",
    more: Sequence[Section] = (),
    foot: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Write report.html and its pictures: samples, nearest, completions, reconstructions, curves.

    Args:
        logs: The lines of each run's log, by its folder's name: `vqvae`, `prior_top`, ...
        since: What follows "seconds" if a part of the training is not counted.
        more: Sections after the pictures.
        foot: The line at the end.

    Returns:
        How near drawn and held-out images are to the nearest training images, for machines.
    """
    vqvae: Any = pipeline.vqvae
    levels = vqvae.level_names
    settings = _in_words(pipeline.recommended)
    write_picture(
        out / "samples.png",
        sample_grid(drawn.images, drawn.rows, drawn.names, title=f"New images: {settings}"),
    )
    nearest = _picture_of_nearest(drawn.images, train_set, held_out, out / "nearest.png")
    _picture_of_completions(pipeline, held_out, out / "completions.png", seed)
    error = evaluation.reconstruction.psnr
    picture_of_reconstructions(
        vqvae,
        held_out,
        out / "reconstructions.png",
        title=f"Held-out images: {error:.1f} dB at {evaluation.bits_per_image:.0f} bits per image",
    )
    plot_curves(
        out / "curves.png",
        logs["vqvae"],
        {name: logs[f"prior_{name}"] for name in levels},
        marginal_bits={n: own.marginal_bits_per_code for n, own in evaluation.levels.items()},
        num_embeddings=vqvae.config.num_embeddings,
    )
    given = "class" if drawn.names else "nothing"
    write_report(
        out / "report.html",
        title,
        lead,
        [
            Section(
                "New images",
                f"Drawn from noise, given {given}: {settings}. A lower temperature and more "
                "guidance give clearer images of less variety. A class with few images can only "
                "be memorised.",
                picture=out / "samples.png",
            ),
            Section(
                "Are they new?",
                "Some of them, each above the training image that is nearest to it. The distance "
                "is the root mean square over pixels, of 255, of images reduced to 16 pixels: "
                f"{nearest['drawn']:.1f} in the middle for drawn images, and "
                f"{nearest['held_out']:.1f} for held-out ones. Much lower values for drawn images "
                "mean that they are copies.",
                picture=out / "nearest.png",
            ),
            Section(
                "Completions",
                "The lower half of held-out images, drawn anew from the upper half.",
                picture=out / "completions.png",
            ),
            Section(
                "Reconstructions",
                "Held-out images, each above what its codes decode to. No drawn image is sharper.",
                picture=out / "reconstructions.png",
            ),
            *more,
            code_costs(evaluation),
            Section("Training", picture=out / "curves.png"),
            Section(
                "Time",
                header=("part", f"seconds{since}"),
                rows=[[name, f"{value:.0f}"] for name, value in seconds.items()],
            ),
        ],
        foot,
    )
    return nearest


def _picture_of_nearest(
    drawn: Tensor, train_set: ImageSource, held_out: ImageSource, path: Path
) -> dict[str, float]:
    """Write drawn images above the nearest training images; the median distances to these."""
    known = spread_evenly(train_set, _MOST_COMPARED)
    features = torch.cat([_reduced(images) for images, _ in in_order(known, 256)])
    real = torch.cat([images for images, _ in in_order(spread_evenly(held_out, 100), 100)])
    found, distance = nearest_code(_reduced(drawn), features)
    of_real = nearest_code(_reduced(real), features)[1]
    shown = evenly(len(drawn), _COMPARED)
    images = to_float(torch.stack([known[int(row)][0].cpu() for row in found[shown]]))
    rows, labels = [drawn[shown], images], ["drawn", "nearest"]
    write_picture(path, image_grid(rows, labels, title="Drawn, and the nearest training image"))
    scale = 127.5 / math.sqrt(features.shape[1])
    return {
        "drawn": float(distance.clamp(min=0).sqrt().median()) * scale,
        "held_out": float(of_real.clamp(min=0).sqrt().median()) * scale,
    }


def _reduced(images: Tensor) -> Tensor:
    """Images `[N, C, H, W]` of at most 16 pixels a side, as float32 vectors `[N, F]`."""
    size = [min(side, _SIDE) for side in images.shape[-2:]]
    return F.interpolate(images.float().cpu(), size, mode="area").flatten(1)


def _picture_of_completions(
    pipeline: Pipeline, held_out: ImageSource, path: Path, seed: int
) -> None:
    device = device_of(pipeline.priors[0])
    shown = spread_evenly(held_out, _COMPLETED)
    images, labels = next(iter(in_order(shown, _COMPLETED)))
    mask = torch.zeros(images.shape[-2:], dtype=torch.bool, device="cpu")
    mask[images.shape[-2] // 2 :] = True
    times = _COMPLETIONS
    known = labels.repeat_interleave(times) if pipeline.num_classes else None
    filled, _ = fill(
        pipeline,
        images.repeat_interleave(times, 0).to(device),
        mask.to(device),
        labels=known,
        seed=seed,
        **pipeline.recommended,
    )
    given = torch.where(mask, 0.75 + 0.25 * images, images)
    rows = [
        torch.cat([given[row : row + 1], filled[row * times : (row + 1) * times].cpu()])
        for row in range(len(images))
    ]
    write_picture(path, image_grid(rows, title="Left: held out, the pale half is drawn anew"))
