"""What a module may keep of a forward inside `torch.func`, whose tensors end with a transform."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec

import torch
from torch import Tensor
from torch._C import _functorch

from vqvae2_fast.ops._registry import transforms_are_active

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["all_of", "detached", "outside_transforms", "refuse_vmap"]

_Arguments = ParamSpec("_Arguments")


def outside_transforms(function: Callable[_Arguments, Tensor]) -> Callable[_Arguments, Tensor]:
    """Make a function compute with the values that tensors hold, past all surrounding transforms.

    Its result is an ordinary tensor, without a derivative. Under `vmap` the samples are the last
    dimension of its arguments.
    """

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Tensor:
        # A compiled graph holds no wrappers.
        if torch.compiler.is_compiling() or not transforms_are_active():
            return function(*args, **kwargs)
        # PyTorch has no public function for this, but prints tensors in the same way.
        with torch._C._DisableFuncTorch():
            held = [_held(value) if isinstance(value, Tensor) else value for value in args]
            return function(*held, **kwargs)  # type: ignore[arg-type]

    return call


def _held(value: Tensor) -> Tensor:
    dims = []
    while _functorch.is_functorch_wrapped_tensor(value):
        dims.append(_functorch.maybe_get_bdim(value))
        value = _functorch.get_unwrapped(value)
    # From the outermost `vmap` inwards: what is wrapped later does not count its dimension.
    for dim in reversed(dims):
        if dim >= 0:
            value = value.movedim(dim, -1)
    return value


def refuse_vmap(*values: Tensor) -> None:
    """Refuse to start or move a codebook by or of tensors that differ between samples of `vmap`.

    Raises:
        NotImplementedError: One of the tensors does.
    """
    if not torch.compiler.is_compiling() and any(map(_differs_between_samples, values)):
        raise NotImplementedError(
            "a codebook neither starts nor moves under torch.func.vmap, which has no "
            "rule for operators that write in place. Call the module outside of vmap, with the "
            "whole batch (each module of an ensemble by itself). Under vmap it works in evaluation "
            "mode, once its codebook has started."
        )


def _differs_between_samples(value: Tensor) -> bool:
    while _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    return False


@outside_transforms
def all_of(flag: Tensor) -> Tensor:
    """Whether a flag is True for all samples, 0-d."""
    return flag.all()


@outside_transforms
def detached(value: Tensor) -> Tensor:
    """`value.detach()`, which a module may keep."""
    return value.detach()
