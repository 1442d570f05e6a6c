"""A fingerprint of tensors: what it is when their contents, shapes and dtypes are.

Version counters would cost nothing, but writes through `.data` do not count there. So the content
is hashed before each draw, by a hash in which the position of every bit counts. Measured for the
port's two priors (699 MB) next to their draw: benchmarks/sampler_fingerprint.py.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["fingerprint"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements of a row, which has one multiplier per column, and elements hashed at a time. So all of a
# prior's small tensors take a few calls, and its weights are never copied as a whole.
_COLUMNS, _ELEMENTS = 1 << 12, 1 << 24


def fingerprint(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    """Numbers to compare with other fingerprints of this process.

    Reads all of the tensors; on a GPU this is a synchronisation point.
    """
    kinds, native, groups = [], [], defaultdict(list)
    for tensor in tensors:
        kinds.append((tensor.dtype, tensor.device, tensor.shape, tensor.stride()))
        if not tensor.is_contiguous():
            tensor = _in_memory_order(tensor.detach())
        if _native.module is not None and tensor.device.type == "cpu":
            native.append(tensor)
        elif tensor.numel():
            groups[tensor.device, _INTEGERS[tensor.element_size()]].append(tensor.detach())
    hashes: list[int] = []
    if native:
        assert _native.module is not None
        hashes += _native.module.content_hashes(native, torch.get_num_threads())
    for (_, dtype), group in groups.items():
        flat = [tensor.view(-1).view(dtype) for tensor in group]
        hashes += torch.stack([_hash(part) for part in _parts(flat)]).tolist()
    return tuple(kinds), tuple(hashes)


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The tensor, contiguous in an order of dimensions that avoids a copy if possible."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).contiguous()


def _parts(tensors: Sequence[Tensor]) -> Iterable[Tensor]:
    """The elements of all tensors together, in parts of about `_ELEMENTS`."""
    held: list[Tensor] = []
    for tensor in tensors:
        for part in tensor.split(_ELEMENTS):
            held.append(part)
            if sum(map(len, held)) >= _ELEMENTS:
                yield torch.cat(held)
                held = []
    if held:
        yield torch.cat(held)


def _hash(x: Tensor) -> Tensor:
    """Hash of integers `[n]`, int64 `[]`, modulo 2^64: Σ_row mixed(Σ_column x·column's)·row's."""
    rows = -(-len(x) // _COLUMNS)
    padded = torch.nn.functional.pad(x, (0, rows * _COLUMNS - len(x))).view(rows, _COLUMNS)
    sums = (padded * _multipliers(_COLUMNS, x.device)).sum(1)
    # The highest bits act on the lowest; otherwise a difference of 2^63 would vanish when doubled.
    mixed = sums ^ (sums >> 32)
    return (mixed * _multipliers(rows, x.device)).sum()


def _multipliers(count: int, device: torch.device) -> Tensor:
    """Odd numbers without a pattern, int64 `[count]`."""
    n = torch.arange(1, count + 1, dtype=torch.int64, device=device) * -0x61C8864680B583EB
    n = (n ^ (n >> 30)) * -0x40A7B892E31B1A47
    return (n ^ (n >> 27)) * -0x6B2FB644ECCEEE15 | 1
