"""What a training forward used and then moved, for a checkpoint's recomputation."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._registry import transforms_are_active

__all__ = ["LatestForward"]


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
        # There no checkpoint recomputes, and transforms let nobody keep their tensors.
        if not (transforms_are_active() or torch.compiler.is_compiling()):
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
                f"A checkpoint recomputes another forward than the latest, and the "
                "codebook has moved since. Compute the gradients of each forward before the next, "
                f"or {remedy}."
            )
        return self._state
