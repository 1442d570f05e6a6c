"""What an operator gives the shared tests: inputs to compare on, and calls that must fail.

Each folder of `vqvae2_fast/ops` has a module here with `CASES` and `ERRORS` for the operator of the
folder's name, and `PRIVATE_CASES` with a list for every other operator that is registered there.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.ops._registry import Operator

__all__ = ["Case", "ErrorCase", "cases_of", "errors_of", "randn"]


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
