"""Keeps decisions that depend on values out of compiled graphs, and the host from waiting for them.

Whether a codebook has to start is decided by the value of a buffer: reading it breaks a graph of
`torch.compile`, and on a GPU it makes the host wait.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from vqvae2_fast.modules.outside_transforms import all_of
from vqvae2_fast.ops._registry import transforms_are_active

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "StartFlag",
    "has_started",
    "has_values",
    "inside_backward",
    "outside_graphs",
    "reading_waits",
    "register_flag",
]

_LIBRARY = torch.library.Library("vqvae2_fast", "FRAGMENT")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def outside_graphs(
    schema: str, fake: Callable[..., Any]
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Make a function one opaque call of compiled graphs.

    Args:
        schema: A `torch.library` schema without the name; it marks the tensors that are written.
        fake: Empty results of the right shapes.
    """

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        name = function.__name__
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"vqvae2_fast::{name}", fake, lib=_LIBRARY)
        overload = getattr(torch.ops.vqvae2_fast, name).default

        @functools.wraps(function)
        def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            if torch.compiler.is_compiling():
                return overload(*args, **kwargs)
            return function(*args, **kwargs)

        return call

    return decorate


def inside_backward() -> bool:
    """Whether autograd is running backward: then this forward is a checkpoint's recomputation."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def has_values(tensor: Tensor) -> bool:
    """Whether there is anything to read: neither on the meta device nor under `FakeTensorMode`."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def reading_waits(tensor: Tensor) -> bool:
    """Whether the host has to wait for the tensor's device to read a value of it, or cannot."""
    return not (tensor.is_cpu and has_values(tensor))


def register_flag(module: nn.Module, name: str, value: bool) -> None:
    """Give a module a 0-d buffer of 0 or 1, which its state dict holds as bool.

    `AveragedModel(..., use_buffers=True)` subtracts buffers, which tensors of bool do not allow.
    """
    module.register_buffer(name, torch.tensor(value, dtype=torch.uint8))
    module.register_state_dict_post_hook(functools.partial(_as_bool, name))


def _as_bool(
    name: str, module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object
) -> None:
    state[prefix + name] = state[prefix + name].bool()


class StartFlag:
    """What the host knows of a codebook's start, so that it need not ask a GPU at every step."""

    def __init__(self) -> None:
        self._settled = torch.zeros((), dtype=torch.bool, device="cpu")
        self._buffer: Tensor | None = None

    @property
    def settled(self) -> Tensor:
        """Whether the codebook has started: bool, 0-d, on the CPU. False if that is not known."""
        if transforms_are_active():  # they refuse to write what they were not given
            return torch.zeros((), dtype=torch.bool, device="cpu")
        return self._settled

    def sees_another(self, initialised: Tensor) -> bool:
        """Whether the buffer was replaced (moved, swapped, passed in); `settled` is then False.

        A compiled graph skips this: its buffer is an input of the graph.
        """
        if torch.compiler.is_compiling() or self._buffer is initialised:
            return False
        self._buffer = None if transforms_are_active() else initialised
        self.settled.zero_()  # torch.jit.trace cannot record fill_(False)
        return True

    def forget(self) -> None:
        """Treat the buffer as another one, because its value was loaded."""
        self._buffer = None


def has_started(initialised: Tensor, settled: Tensor) -> bool:
    """Whether a codebook has started, which only its buffer decides.

    If reading it waits for a GPU, `settled` of its `StartFlag` remembers that it was True. Where
    there is no value to read, the codebook counts as started.
    """
    if not has_values(initialised):
        return True
    if not reading_waits(initialised):
        return bool(all_of(initialised))
    if not settled:
        settled.copy_(all_of(initialised))
    return bool(settled)
