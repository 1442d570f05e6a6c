"""A picture of a folder of samples: some of each class, or completions next to what they complete.

Reads no more than it shows, however many samples there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.data import to_float
from vqvae2_fast.data.groups import group_names, group_of
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

_ROWS, _COLUMNS = 24, 12  # rows of a picture, at most
_MOST_CLASSES = 16  # with a row each
_BLOCK = 96  # images of one class, or without classes


def folder_grid(folder: Path, known: Known | None = None) -> Image.Image:
    """The first samples of a folder, the rest left out: a row for each class or, if there are more
    than `_MOST_CLASSES` or most have one sample, for each of their groups ("Flags" of "Flags -
    flag").

    Args:
        known: The images that the samples complete; each row begins with one of them, in which the
            part that was drawn is pale.
    """
    if known is not None:
        return _completions(folder, known)
    classes = [str(row["class"]) for row in _kept(folder) if row.get("class") is not None]
    names = sorted(set(classes))
    row_of: dict[str | None, str | None] = {None: None} | {name: name for name in names}
    if len(names) > min(_MOST_CLASSES, len(classes) / 2):
        row_of |= {name: group_of(name) for name in names}
        names = list(group_names(names))
    most = _COLUMNS if len(names) > 1 else _BLOCK
    shown: list[dict[str, Any]] = []
    total = 0
    counts: dict[str | None, int] = dict.fromkeys([*names[:_ROWS], None], 0)
    for row in _kept(folder):
        total += 1
        name = row_of[row.get("class")]
        if counts.get(name, most) < most:
            counts[name] += 1
            shown.append(row)
    of_shown = [row_of[row.get("class")] for row in shown]
    labels = [-1 if name is None else names.index(name) for name in of_shown]
    if names and -1 in labels:  # samples of no class get a row of their own
        names.append("no class")
        labels = [label if label >= 0 else len(names) - 1 for label in labels]
    return sample_grid(_read(folder, shown), labels, names, title=_left_out(len(shown), total))


def _kept(folder: Path) -> Iterator[dict[str, Any]]:
    return (row for row in read_index(folder) if row["file"] is not None)


def _completions(folder: Path, known: Known) -> Image.Image:
    of_image: dict[int, list[dict[str, Any]]] = {}
    total = 0
    for row in _kept(folder):
        total += 1
        own = of_image.get(row["known"], [])
        if len(own) < _COLUMNS - 1 and (own or len(of_image) < _ROWS):
            of_image[row["known"]] = [*own, row]
    lines = []
    for number, own in of_image.items():
        whole = known.image(number).cpu()
        given = torch.where(known.hole.pixels, 0.75 + 0.25 * whole, whole)
        lines.append(torch.cat([given[None], _read(folder, own)]))
    title = "Left: the image given, pale where it is completed"
    left_out = _left_out(sum(map(len, of_image.values())), total)
    return image_grid(lines, title=f"{title} ({left_out})" if left_out else title)


def _left_out(shown: int, total: int) -> str:
    return f"the first {shown} of {total}" if shown < total else ""


def _read(folder: Path, rows: list[dict[str, Any]]) -> Tensor:
    """Images of the index's rows, float `[N, C, H, W]` in [-1, 1]."""
    images = [read_sample(folder, row["sample"]) for row in rows]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{printable(folder)}: expected images of one size, got {sorted(shapes)}.")
    return to_float(torch.stack(images))
