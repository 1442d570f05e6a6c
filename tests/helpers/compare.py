"""Comparing an operator with its definition: the float bound, awkward inputs, and what really ran.

The bound is relative to what the reference itself loses in the same dtype, so that it holds for
every dtype and size without a hand-picked tolerance.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae2_fast.ops import _native, _training
from vqvae2_fast.ops._registry import OPERATORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vqvae2_fast.ops._registry import Operator

__all__ = [
    "NO_LEVEL",
    "RecordedOperators",
    "assert_close_to_float64",
    "every_call_trains",
    "has_kernel",
    "needs_kernels",
    "relative_difference",
    "scattered",
    "simd_level",
    "simd_levels",
    "to_float64",
]

# Stands for the SIMD level where there is no compiled module.
NO_LEVEL = "reference"
needs_kernels = pytest.mark.skipif(_native.module is None, reason="this install has no kernels")


def simd_levels() -> tuple[str, ...]:
    """SIMD levels of this build and CPU, lowest first; `NO_LEVEL` without the compiled module.

    So without the module a test with a parameter for the level runs once, on the references.
    """
    return (NO_LEVEL,) if _native.module is None else tuple(_native.module.simd_levels())


@contextmanager
def simd_level(name: str) -> Iterator[None]:
    """Run the CPU kernels of one SIMD level in the block; with `NO_LEVEL` change nothing."""
    if name != NO_LEVEL and _native.module is None:
        raise RuntimeError(f"{_native.MISSING_REASON}.")
    with _native.at_simd_level(name):
        yield


@contextmanager
def every_call_trains() -> Iterator[None]:
    """Makes kernels for training also take small calls and calls without a gradient."""
    with mock.patch.object(_training, "is_training_call", lambda *_, **__: True):
        yield


class RecordedOperators(TorchDispatchMode):
    """Names of this package's operators that the dispatcher enters inside, in their order.

    An operator that decomposes into PyTorch's calls does not appear. `torch.compile` takes no
    graph inside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "vqvae2_fast":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))

    def kernels_of(self, operator: Operator, device_type: str) -> list[str]:
        """The names that entered a kernel of the operator's folder."""
        folder = operator.reference.__module__
        return [
            name
            for name in self.names
            if OPERATORS[name].reference.__module__ == folder and has_kernel(name, device_type)
        ]


def has_kernel(name: str, device_type: str) -> bool:
    """Whether the dispatcher has a compiled or Triton kernel of this name for a device."""
    key = device_type.upper()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"vqvae2_fast::{name}", key)


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


def relative_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest difference of a floating tensor from the expected one, in its largest number.

    Compare it as `<= bound`: it is NaN if a tensor holds a NaN, or infinity where one is expected.
    """
    worst = torch.zeros((), dtype=torch.float64, device="cpu")
    for name, value in expected.items():
        if value.is_floating_point():
            difference = (found[name].double() - value.double()).abs().max()
            if difference != 0:  # so that tensors of zeros are equal
                worst = torch.maximum(worst, difference / value.double().abs().max())
    return float(worst)
