"""What an operator gives the shared tests: inputs to compare on, and calls that must fail.

Each folder of `vqvae2_fast/ops` has a module here:

- `CASES` and `ERRORS` are for the operator of the folder's name, `PRIVATE_CASES` has a list for
  every other operator that is registered there.
- `DERIVATIVES` is for an operator with a gradient: by name, the operator as a function of one
  argument, and that argument.
- `CONSTANTS` is for results that have no gradient: by name, functions of a tensor `[4, 6]`.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast import ops

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.ops._registry import Operator

__all__ = [
    "Case",
    "ErrorCase",
    "cases_of",
    "errors_of",
    "functions_of",
    "like",
    "randn",
    "values",
]


# Private operators are registered when a layer first needs them; the tests walk all of them.
for _path in Path(ops.__file__).parent.glob("*/op.py"):
    importlib.import_module(f"vqvae2_fast.ops.{_path.parent.name}.op")


@dataclass(frozen=True)
class Case:
    """One set of arguments for an operator's overload.

    Args:
        make: Takes a seeded generator, returns the arguments in the schema's order.
        gradients: Positions of the arguments that get a gradient.
        batched: Positions of the arguments whose first dimension runs over independent rows, in
            which all results have as well; empty if there is no such dimension.
        exact: Results are bit-equal to the reference; otherwise the float bound holds.
        in_place: Positions of the arguments that are written.
        loosening: Factor on the float bound's part that comes from the reference's own error.
        has_nan: Results hold NaN, which `opcheck` cannot compare.
    """

    name: str
    make: Callable[[torch.Generator], tuple[Any, ...]]
    gradients: tuple[int, ...] = ()
    batched: tuple[int, ...] = ()
    exact: bool = False
    in_place: tuple[int, ...] = ()
    loosening: float = 1
    has_nan: bool = False


@dataclass(frozen=True)
class ErrorCase:
    """A call that must raise `error` with a message that contains `text`."""

    name: str
    call: Callable[[], object]
    error: type[Exception]
    text: str


def randn(
    generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def values(seed: int, *shape: int) -> torch.Tensor:
    """Numbers from -1.5 to 1.5, made without a generator, which `vmap` refuses."""
    return 1.5 * torch.sin(torch.arange(math.prod(shape)) * (1.7 + 0.3 * seed) + 1).view(shape)


def like(x: torch.Tensor, seed: int, *shape: int) -> torch.Tensor:
    """`values` of x's dtype."""
    return values(seed, *shape).to(x.dtype)


def _module_of(operator: Operator) -> Any:
    folder = operator.reference.__module__.split(".")[-2]
    return importlib.import_module(f"helpers.cases.{folder}")


def cases_of(operator: Operator) -> list[Case]:
    module = _module_of(operator)
    private: dict[str, list[Case]] = getattr(module, "PRIVATE_CASES", {})
    return private.get(operator.name, module.CASES)


def errors_of(operator: Operator) -> list[ErrorCase]:
    module = _module_of(operator)
    is_folders = module.__name__.split(".")[-1] == operator.name.rstrip("_")
    return module.ERRORS if is_folders else []


def functions_of(operator: Operator, table: str) -> dict[str, Any]:
    """`DERIVATIVES` or `CONSTANTS` of an operator that is not private or names its folder."""
    module = _module_of(operator)
    is_folders = module.__name__.split(".")[-1] == operator.name.rstrip("_")
    return getattr(module, table, {}) if is_folders else {}
