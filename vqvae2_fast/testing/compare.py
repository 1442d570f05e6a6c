"""Comparing an operator with its definition: the float bound, and awkward inputs.

The bound is relative to what the reference itself loses in the same dtype, so that it holds for
every dtype and size without a hand-picked tolerance.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["assert_close_to_float64", "scattered", "simd_level", "simd_levels", "to_float64"]


def simd_levels() -> tuple[str, ...]:
    """SIMD levels of this build and CPU, lowest first; empty without the compiled module."""
    return () if _native.module is None else tuple(_native.module.simd_levels())


@contextmanager
def simd_level(name: str) -> Iterator[None]:
    """Run the CPU kernels of one SIMD level."""
    if _native.module is None:
        raise RuntimeError(f"simd_level: {_native.MISSING_REASON}.")
    before = _native.module.simd_level()
    _native.module.set_simd_level(name)
    try:
        yield
    finally:
        _native.module.set_simd_level(before)


def to_float64(value: Any) -> Any:
    """The same arguments with every floating tensor in float64."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def scattered(value: Any) -> Any:
    """The same values as a view into a larger tensor: every other element, NaN between."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    shape = [2 * size + 1 for size in value.shape]
    filler = torch.nan if value.is_floating_point() else -(2**40)
    larger = torch.full(shape, filler, dtype=value.dtype, device=value.device)
    view = larger[tuple(slice(1, None, 2) for _ in shape)]
    view.copy_(value)
    return view


def assert_close_to_float64(
    actual: Tensor, eager: Tensor, exact: Tensor, *, factor: float, what: str
) -> None:
    """max|actual − exact| ≤ factor · max|eager − exact| + 4 eps · max|exact|.

    Args:
        actual: The result under test.
        eager: The reference's result in the same dtype.
        exact: The reference's result in float64.
        factor: 2 for values, 3 for gradients.
    """
    if actual.shape != exact.shape:
        raise AssertionError(
            f"{what}: expected shape {list(exact.shape)}, got {list(actual.shape)}"
        )
    if exact.numel() == 0:
        return
    exact = exact.double()
    error = (actual.double() - exact).abs().max()
    allowed = factor * (eager.double() - exact).abs().max()
    allowed += 4 * torch.finfo(eager.dtype).eps * exact.abs().max()
    if not error <= allowed:
        raise AssertionError(f"{what}: error {error:.3g} exceeds {allowed:.3g}")
