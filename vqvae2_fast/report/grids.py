"""Grids of images and of code maps with labels, to look at; a notebook shows them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from vqvae2_fast.data import in_order
from vqvae2_fast.data.images import ImageSubset, spread_evenly, to_float
from vqvae2_fast.data.pixels import pictures
from vqvae2_fast.models.code_checks import (
    as_maps,
)
from vqvae2_fast.models.code_colours import code_colours, code_shares, codes_of, level_colours
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.modules.index_range import check_range
from vqvae2_fast.ops._checks import check_int64
from vqvae2_fast.report.pictures import write_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.modules.quantizer_interface import Quantizer

__all__ = [
    "code_grid",
    "image_grid",
    "picture_of_classes",
    "picture_of_reconstructions",
    "reconstruction_grid",
    "sample_grid",
]

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
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
    title, *labels = (" ".join(text.split()) for text in (title, *labels))  # each is one line
    height, width = rows[0].shape[-2:]
    scale = max(1.0, tile / min(height, width))
    tile_height, tile_width = round(height * scale), round(width * scale)
    font, title_font = _fonts([title, *labels])
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
    for number, (row, label) in enumerate(zip(rows, labels or [""] * len(rows), strict=True)):
        y += 5 * _GAP if number in gaps else 0
        if labels:
            middle = (left - _MARGIN, y + tile_height // 2)
            draw.text(middle, label, _INK, font, anchor="rm")
        for column, image in enumerate(pictures(row)):
            if scale > 1:
                image = image.resize((tile_width, tile_height), Image.Resampling.BICUBIC)
            canvas.paste(image, (left + column * (tile_width + _GAP), y))
        y += tile_height + _GAP
    return canvas


def _fonts(texts: Sequence[str]) -> tuple[_Font, _Font]:
    """Fonts of labels and of the title that have the letters of these texts."""
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(size=17), ImageFont.load_default(size=20)
    import matplotlib  # takes a while, and few pictures need it

    # Pillow's own font has no other letters. This one has those of Latin, Greek, Cyrillic, Arabic
    # and more, but none of Chinese, Japanese and Korean.
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, 17), ImageFont.truetype(path, 20)


def reconstruction_grid(
    images: Tensor,
    reconstructions: Tensor,
    *,
    columns: int = 12,
    title: str = "",
    tile: int = 96,
) -> Image.Image:
    """Images `[N, C, H, W]` in [-1, 1], each above its reconstruction, in pairs of rows.

    Args:
        tile: As of `image_grid`.
    """
    rows, labels = [], []
    for start in range(0, len(images), columns):
        rows += [images[start : start + columns], reconstructions[start : start + columns]]
        labels += ["original", "reconstructed"]
    return image_grid(rows, labels, title=title, gaps=range(2, len(rows), 2), tile=tile)


@torch.no_grad()
def code_grid(
    model: VQVAE2 | Quantizer,
    codes: Sequence[Tensor] | Tensor,
    images: Tensor | None = None,
    *,
    title: str = "",
    tile: int = 96,
) -> Image.Image:
    """Code maps as pictures: a row for each level, a column for each image.

    A code has the same colour in every picture of a model, and similar codes look alike. Codes of
    -1, which stand for unknown ones, are white.

    Args:
        model: What the codes are of: a VQ-VAE, or a quantiser with one index for a vector.
        codes: int64 `[B, h, w]` for each level, coarse to fine; of a quantiser a single map.
        images: `[B, C, H, W]` in [-1, 1], shown above their codes.
        tile: Least height and width of a map in pixels.

    Raises:
        ValueError: Another number of maps than levels, no `[B, h, w]`, codes outside -1..K-1, or a
            quantiser with several indices for a vector.
        TypeError: Codes that are not int64.
    """
    maps = as_maps(codes)
    if isinstance(model, VQVAE2):
        names, colours = list(model.level_names), level_colours(model)
    else:
        names, count = ["codes"], _num_embeddings(model)
        colours = [code_colours(codes_of(model, count), code_shares(model))]
    if len(maps) != len(names):
        raise ValueError(
            f"expected codes to be {len(names)} maps ({', '.join(names)}), got {len(maps)}."
        )
    for number, own in enumerate(maps):
        check_int64(f"codes[{number}]", own)
        if own.dim() != 3:
            raise ValueError(f"expected codes[{number}] [B, h, w], got {list(own.shape)}.")
        check_range(f"codes[{number}]", own, -1, len(colours[number]))
    height, width = maps[-1].shape[-2:]
    scale = max(1, -(-tile // min(height, width)))
    size = (height * scale, width * scale)
    rows = []
    for own, palette in zip(maps, colours, strict=True):
        palette = torch.cat([palette, palette.new_full((1, 3), 255)])  # the last one for -1
        painted = to_float(palette[own.cpu()]).permute(0, 3, 1, 2)  # [B, 3, h, w]
        rows.append(F.interpolate(painted, size, mode="nearest-exact"))
    if images is not None:
        names.insert(0, "image")
        rows.insert(0, F.interpolate(images.float(), size, mode="bicubic", antialias=True))
    return image_grid(rows, names, title=title, tile=1)


def _num_embeddings(quantizer: Quantizer) -> int:
    found = getattr(quantizer, "num_embeddings", None)
    if found is None:
        raise ValueError(
            "expected a quantiser with one index for a vector, got "
            f"{type(quantizer).__name__}. Give one of its parts, with that part's indices."
        )
    return int(found)


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
    samples: Tensor,
    labels: Sequence[int] = (),
    class_names: Sequence[str] = (),
    *,
    title: str = "",
    tile: int = 96,
) -> Image.Image:
    """Samples `[N, C, H, W]` in [-1, 1]: a row with its name for each class, or one block if there
    are no classes.

    Args:
        labels: The class of each sample.
        tile: As of `image_grid`.
    """
    if not class_names:
        block = list(samples.split(block_columns(len(samples))))
        return image_grid(block, title=title, tile=tile)
    shown = [label for label in range(len(class_names)) if label in labels]
    rows = [samples[[i for i, own in enumerate(labels) if own == label]] for label in shown]
    if len(shown) == 1:
        rows = list(rows[0].split(block_columns(len(rows[0]))))
        names = [class_names[shown[0]], *[""] * (len(rows) - 1)]
        return image_grid(rows, names, title=title, tile=tile)
    return image_grid(rows, [class_names[label] for label in shown], title=title, tile=tile)


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
