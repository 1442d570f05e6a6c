"""A picture of a folder of samples: some of each class, or completions beside what they complete.

Reads what it shows and no more, however many samples there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.data import to_float
from vqvae2_fast.data.sample_folder import read_index, read_sample
from vqvae2_fast.files.printable import printable
from vqvae2_fast.report.grids import image_grid, sample_grid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from vqvae2_fast.sampling.known import Known

__all__ = ["folder_grid"]

_CLASSES, _KNOWN, _COLUMNS = 24, 12, 12  # rows and columns that a picture shows at most
_BLOCK = 96  # images of one class, or without classes


def folder_grid(folder: Path, known: Known | None = None) -> Image.Image:
    """The first samples of a folder, the rest left out.

    Args:
        known: The images that they complete; each row begins with one of them, where the part that
            was drawn anew is pale.
    """
    if known is not None:
        return _completions(folder, known)
    names = sorted({row["class"] for row in _kept(folder) if row["class"] is not None})
    most = _COLUMNS if len(names) > 1 else _BLOCK
    shown: list[dict[str, Any]] = []
    total = 0
    counts: dict[str | None, int] = dict.fromkeys([*names[:_CLASSES], None], 0)
    for row in _kept(folder):
        total += 1
        if counts.get(row["class"], most) < most:
            counts[row["class"]] += 1
            shown.append(row)
    labels = [names.index(row["class"]) if row["class"] is not None else -1 for row in shown]
    if names and -1 in labels:  # "no class" beside classes: a row of its own
        names.append("no class")
        labels = [label if label >= 0 else len(names) - 1 for label in labels]
    left_out = f"the first {len(shown)} of {total}" if len(shown) < total else ""
    return sample_grid(_read(folder, shown), labels, names, title=left_out)


def _kept(folder: Path) -> Iterator[dict[str, Any]]:
    return (row for row in read_index(folder) if row["file"] is not None)


def _completions(folder: Path, known: Known) -> Image.Image:
    of_image: dict[int, list[dict[str, Any]]] = {}
    for row in _kept(folder):
        own = of_image.get(row["known"], [])
        if len(own) < _COLUMNS - 1 and (own or len(of_image) < _KNOWN):
            of_image[row["known"]] = [*own, row]
    lines = []
    for number, own in of_image.items():
        whole = known.image(number).cpu()
        kept = int(known.keep * whole.shape[1])
        given = whole.clone()
        given[:, kept:] = 0.75 + 0.25 * given[:, kept:]
        lines.append(torch.cat([given[None], _read(folder, own)]))
    return image_grid(lines, title="Left: what was given; below the part kept it is pale")


def _read(folder: Path, rows: list[dict[str, Any]]) -> Tensor:
    """Images of the index's rows, float `[N, C, H, W]` in [-1, 1]."""
    images = [read_sample(folder, row["sample"]) for row in rows]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{printable(folder)}: expected images of one size, got {sorted(shapes)}.")
    return to_float(torch.stack(images))
