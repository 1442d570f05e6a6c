"""Checks of codes, coarser maps and labels; an error names the argument, the expected, the given.

`where` is the name of the function or model that the message starts with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["as_maps", "check_int64", "check_labels", "check_maps", "check_range"]


def as_maps(condition: Sequence[Tensor] | Tensor | None) -> list[Tensor]:
    """The list of coarser maps that a `condition` argument stands for."""
    if condition is None:
        return []
    return [condition] if isinstance(condition, Tensor) else list(condition)


def check_int64(where: str, name: str, values: Tensor) -> None:
    if values.dtype != torch.int64:
        raise TypeError(f"{where}: expected {name} int64, got {values.dtype}.")


def check_range(where: str, name: str, values: Tensor, first: int, end: int) -> None:
    """Error unless all values are in first..end-1.

    On a GPU this is an assertion on the device, without synchronisation; a compiled graph has none.
    """
    if torch.compiler.is_compiling() or values.numel() == 0 or values.is_meta:
        return
    if values.device.type != "cpu":
        torch._assert_async(((values >= first) & (values < end)).all())
        return
    low, high = int(values.min()), int(values.max())
    if low < first or high >= end:
        raise ValueError(
            f"{where}: expected {name} in {first}..{end - 1}, got values in {low}..{high}."
        )


def check_maps(
    where: str,
    maps: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    num_embeddings: int,
    batch_size: int,
) -> None:
    """The coarser maps of a prior: int64 `[B, h, w]` of the given sizes."""
    if len(maps) != len(sizes):
        raise ValueError(
            f"{where}: expected condition to be {len(sizes)} map(s) of sizes {list(sizes)}, "
            f"coarse to fine, got {len(maps)}."
        )
    for index, (codes, size) in enumerate(zip(maps, sizes, strict=True)):
        name = f"condition[{index}]"
        check_int64(where, name, codes)
        if codes.shape != (batch_size, *size):
            raise ValueError(
                f"{where}: expected {name} {[batch_size, *size]}, got {list(codes.shape)}."
            )
        check_range(where, name, codes, 0, num_embeddings)


def check_labels(where: str, labels: Tensor | None, num_classes: int, batch_size: int) -> None:
    """int64 `[B]` in 0..num_classes; none for a prior without classes."""
    if num_classes == 0:
        if labels is not None:
            raise ValueError(f"{where}: expected no labels: the prior has no classes.")
        return
    if labels is None:
        raise ValueError(
            f"{where}: labels are missing: expected int64 [{batch_size}] in 0..{num_classes}, "
            f'where {num_classes} stands for "no class".'
        )
    check_int64(where, "labels", labels)
    if labels.shape != (batch_size,):
        raise ValueError(f"{where}: expected labels [{batch_size}], got {list(labels.shape)}.")
    check_range(where, "labels", labels, 0, num_classes + 1)
