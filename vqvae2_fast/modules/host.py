"""What a codebook knows on the host: whether it has started, and what a recomputed forward used.

Values of buffers decide this. Reading one breaks a graph of `torch.compile`, and on a GPU it makes
the host wait, so all such reads are here, and `outside_graphs` hides what depends on them.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._subclasses.fake_tensor import FakeTensor

from vqvae2_fast.ops._registry import transforms_are_active

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "LatestForward",
    "Phase",
    "has_started",
    "has_values",
    "inside_backward",
    "outside_graphs",
    "reading_synchronises",
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


def reading_synchronises(tensor: Tensor) -> bool:
    """Whether reading a value of it synchronises its device with the host, or is impossible."""
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


class Phase:
    """Whether a codebook waits (`quantize_after`), has to start by k-means, or has started.

    Only its buffers decide this. What the host has read of them is kept here, so that it need not
    ask a GPU at every step.

    Attributes:
        settled: Whether the codebook is known to have started: bool, 0-d, on the CPU. Calls that
            are opaque to compiled graphs write it.
    """

    def __init__(self) -> None:
        self.settled = torch.zeros((), dtype=torch.bool, device="cpu")
        self._waits = True  # as far as is known
        self._buffer: Tensor | None = None

    def forget(self) -> None:
        """Read the buffers again, because their values were loaded."""
        self._buffer = None

    def look_at(self, initialised: Tensor) -> None:
        """Forget what was read of another buffer: it may be moved, swapped or passed in.

        A compiled graph skips this because its buffer is an input of the graph.
        """
        if torch.compiler.is_compiling() or transforms_are_active():
            return
        if self._buffer is not initialised:
            self._buffer = initialised
            self.settled.zero_()  # torch.jit.trace cannot record fill_(False)
            self._waits = True

    def waits(self, steps: Tensor, initialised: Tensor, quantize_after: int) -> bool:
        """Whether nothing is quantised yet. On a GPU the buffers are read until that has ended."""
        self.look_at(initialised)
        if not quantize_after or steps.is_meta:  # there nothing can be read
            return False
        may_read = self._waits or not reading_synchronises(steps)
        if may_read and not torch.compiler.is_compiling():
            self.read_wait(steps, initialised, quantize_after)
        return self._waits

    def read_wait(self, steps: Tensor, initialised: Tensor, quantize_after: int) -> None:
        """Read whether the wait has ended, in compiled code too, whose graph this may break."""
        if has_values(steps):
            self._waits = bool((steps < quantize_after) & (initialised == 0))

    def end_wait(self) -> None:
        self._waits = False

    def has_started(self, initialised: Tensor) -> bool:
        self.look_at(initialised)
        return has_started(initialised, self.settled)


def has_started(initialised: Tensor, settled: Tensor) -> bool:
    """Whether a codebook has started, which only its buffer decides.

    If reading it waits for a GPU, `settled` of its `Phase` remembers that it was True. Where there
    is no value to read, the codebook counts as started.
    """
    if not has_values(initialised):
        return True
    while _functorch.is_functorch_wrapped_tensor(initialised):  # one flag of each sample of `vmap`
        initialised = _functorch.get_unwrapped(initialised)
    if not reading_synchronises(initialised) or transforms_are_active():
        return bool(initialised.all())
    if not settled:
        settled.copy_(initialised.all())
    return bool(settled)


class LatestForward:
    """Copies of the state of the latest forward, whose end may move that state.

    Autograd numbers its nodes in the order in which they are made. That tells which forward a node
    recomputes, whatever its values are: two forwards may see the same vectors, and a recomputation
    may differ in the last bits. A checkpoint with `use_reentrant=True` is itself a node, made
    before its forward; otherwise a node of the forward asks for what it had saved.
    """

    def __init__(self) -> None:
        self._state: tuple[Tensor, ...] = ()
        # Nodes made after the latest forward have its number or a later one.
        self._number = self._previous = -1
        self._checkpoint: Any = None
        self._shares_checkpoint = False

    def __reduce__(self) -> tuple[type[LatestForward], tuple[()]]:
        return LatestForward, ()  # nothing recomputes a forward of another module

    def keep(self, *state: Tensor) -> tuple[Tensor, ...]:
        """Copies of what a forward uses, which its recomputation will `recall`."""
        copies = tuple(tensor.clone() for tensor in state)
        if not torch.compiler.is_compiling():  # there no checkpoint recomputes
            self._state = copies
            self._previous, self._number = self._number, torch._C._autograd._get_sequence_nr()
            hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
            before = self._checkpoint and self._checkpoint()
            self._shares_checkpoint = hooks is not None and hooks[0] is before
            self._checkpoint = hooks and weakref.ref(hooks[0])
        return copies

    def recall(self, remedy: str) -> tuple[Tensor, ...]:
        """What the recomputed forward kept.

        Raises:
            RuntimeError: It is not the latest forward, or one of several in one checkpoint.
        """
        node = torch._C._current_autograd_node()
        number = node._sequence_nr()
        if node.name() == "CheckpointFunctionBackward":
            is_latest = number >= self._previous
        else:
            is_latest = number >= self._number and not self._shares_checkpoint
        if not is_latest:
            raise RuntimeError(
                "A checkpoint recomputes another forward than the latest, and the "
                "codebook has moved since. Compute the gradients of each forward before the next, "
                f"or {remedy}."
            )
        return self._state
