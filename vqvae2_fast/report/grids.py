"""Grids of images with labels, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont

from vqvae2_fast.data import in_order
from vqvae2_fast.data.pixels import pictures
from vqvae2_fast.data.subset import ImageSubset, spread_evenly
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.report.files import write_picture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = [
    "image_grid",
    "picture_of_classes",
    "picture_of_reconstructions",
    "reconstruction_grid",
    "sample_grid",
]

_GAP, _MARGIN = 4, 12  # pixels between tiles, and around the grid
_BACKGROUND, _INK, _FAINT = (246, 246, 246), (30, 30, 30), (110, 110, 110)


def image_grid(
    rows: Sequence[Tensor],
    labels: Sequence[str] = (),
    *,
    title: str = "",
    gaps: Sequence[int] = (),
    tile: int = 96,
) -> Image.Image:
    """Rows of images, each with a label to its left.

    Args:
        rows: Each is `[n, C, H, W]` in [-1, 1], all of one size; n may differ.
        labels: One for each row, or none at all.
        title: A line above the grid.
        gaps: Numbers of the rows that have a gap above them.
        tile: Smaller images are enlarged (bicubic) so that their shorter side has this many pixels.
    """
    height, width = rows[0].shape[-2:]
    scale = max(1.0, tile / min(height, width))
    tile_height, tile_width = round(height * scale), round(width * scale)
    font, title_font = ImageFont.load_default(size=17), ImageFont.load_default(size=20)
    label_width = max((int(font.getlength(label)) for label in labels), default=0)
    left = _MARGIN + (label_width + _MARGIN if labels else 0)
    top = _MARGIN + (34 if title else 0)
    columns = max(len(row) for row in rows)
    canvas_width = left + columns * (tile_width + _GAP) - _GAP + _MARGIN
    canvas_width = max(canvas_width, 2 * _MARGIN + int(title_font.getlength(title)))
    canvas_height = top + len(rows) * (tile_height + _GAP) + len(gaps) * 5 * _GAP + _MARGIN
    canvas = Image.new("RGB", (canvas_width, canvas_height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((_MARGIN, _MARGIN), title, _INK, title_font)
    y = top
    for number, row in enumerate(rows):
        y += 5 * _GAP if number in gaps else 0
        if labels:
            middle = (left - _MARGIN, y + tile_height // 2)
            draw.text(middle, labels[number], _INK, font, anchor="rm")
        for column, image in enumerate(pictures(row)):
            if scale > 1:
                image = image.resize((tile_width, tile_height), Image.Resampling.BICUBIC)
            canvas.paste(image, (left + column * (tile_width + _GAP), y))
        y += tile_height + _GAP
    return canvas


def reconstruction_grid(
    images: Tensor, reconstructions: Tensor, *, columns: int = 12, title: str = ""
) -> Image.Image:
    """Images `[N, C, H, W]` in [-1, 1], each above its reconstruction, in pairs of rows."""
    rows, labels = [], []
    for start in range(0, len(images), columns):
        rows += [images[start : start + columns], reconstructions[start : start + columns]]
        labels += ["original", "reconstructed"]
    return image_grid(rows, labels, title=title, gaps=range(2, len(rows), 2))


@torch.no_grad()
def picture_of_reconstructions(
    model: VQVAE2, dataset: ImageSource, path: Path, count: int = 36, title: str = ""
) -> Path:
    """Write `count` images, spread evenly over a set, each above its reconstruction.

    Only these images are read, and they are encoded one by one: a picture of large images needs no
    more memory than they do.
    """
    device = device_of(model)
    images = torch.cat([image for image, _ in in_order(spread_evenly(dataset, count), 1)]).cpu()
    reconstructed = [model.decode(model.encode(one.to(device))).cpu() for one in images.split(1)]
    write_picture(path, reconstruction_grid(images, torch.cat(reconstructed), title=title))
    return path


def sample_grid(
    samples: Tensor, labels: Sequence[int], class_names: Sequence[str], *, title: str = ""
) -> Image.Image:
    """Samples `[N, C, H, W]` in [-1, 1]: a row with its name for each class, or one block if there
    are no classes."""
    if not class_names:
        return image_grid(list(samples.split(block_columns(len(samples)))), title=title)
    shown = [label for label in range(len(class_names)) if label in labels]
    rows = [samples[[i for i, own in enumerate(labels) if own == label]] for label in shown]
    if len(shown) == 1:
        rows = list(rows[0].split(block_columns(len(rows[0]))))
        return image_grid(rows, [class_names[shown[0]], *[""] * (len(rows) - 1)], title=title)
    return image_grid(rows, [class_names[label] for label in shown], title=title)


def picture_of_classes(
    images: ImageSource, path: Path, class_names: Sequence[str], most: int
) -> None:
    """Write the first images of each class of a set, `most` at most; only these are read."""
    labels = images.labels
    rows = torch.cat([(labels == label).nonzero().flatten()[:most] for label in labels.unique()])
    shown = torch.cat([image for image, _ in in_order(ImageSubset(images, rows), 1)])
    write_picture(path, sample_grid(shown, labels[rows].tolist(), class_names))


def block_columns(count: int) -> int:
    """The number of columns, at most 12, with which a block of images has the fewest gaps."""
    if count <= 6:
        return max(1, count)
    return min(range(12, 5, -1), key=lambda columns: -count % columns)
