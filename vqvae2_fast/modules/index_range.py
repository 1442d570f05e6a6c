"""Checks that indices are in range, where their values can be read."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.modules.host import has_values
from vqvae2_fast.ops._checks import assert_inside, check_tensor, dtype_name
from vqvae2_fast.ops._registry import transforms_are_active

__all__ = ["check_columns", "check_indices", "check_integers", "check_range", "may_read"]


def may_read(values: Tensor) -> bool:
    """Whether a check may read values: not in a compiled graph, nor under transforms of
    `torch.func`, nor where there are none."""
    if torch.compiler.is_compiling() or transforms_are_active():
        return False
    return values.numel() > 0 and has_values(values)


def check_integers(name: str, values: Tensor) -> None:
    """Raise TypeError unless values are an int64 or int32 tensor; torch takes bytes for a mask."""
    check_tensor(name, values)
    if values.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"expected {name} int64, got {dtype_name(values.dtype)}; pass {name}.long()."
        )


def check_columns(indices: Tensor, *columns: int, or_fewer: bool = False) -> None:
    """Raise ValueError unless the last sizes of a quantiser's indices are these.

    Args:
        or_fewer: The very last size may also be a smaller one, at least 1.
    """
    *others, most = columns
    sizes = list(indices.shape[-len(columns) :])
    numbers = range(1, most + 1) if or_fewer else [most]
    if len(sizes) < len(columns) or sizes[:-1] != others or sizes[-1] not in numbers:
        last = f"1..{most}" if len(numbers) > 1 else most
        expected = ", ".join(map(str, ("...", *others, last)))
        raise ValueError(f"expected indices [{expected}], got {list(indices.shape)}.")


def check_indices(indices: Tensor, num_embeddings: int, name: str = "indices") -> None:
    """`check_integers` and `check_range` of a module's indices below K."""
    check_integers(name, indices)
    check_range(name, indices, 0, num_embeddings)


def check_range(name: str, values: Tensor, first: int, end: int) -> None:
    """Raise ValueError unless all values are in first..end-1.

    On a GPU this is an assertion on the device, without synchronisation. Nothing is checked where
    values cannot be read (`may_read`).
    """
    if not may_read(values):
        return
    if values.device.type != "cpu":
        assert_inside(values, first, end, name=name)
        return
    low, high = int(values.min()), int(values.max())
    if low < first or high >= end:
        raise ValueError(f"expected {name} in {first}..{end - 1}, got values in {low}..{high}.")
