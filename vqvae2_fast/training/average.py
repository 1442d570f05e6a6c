"""Polyak average of a model's weights: what is validated, saved and drawn from."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PolyakAverage"]


class PolyakAverage:
    """average ← d·average + (1 − d)·weight after each step, with d = min(decay, (1 + t)/(10 + t)).

    The early steps' smaller d forgets the initial weights, as in TensorFlow's
    `ExponentialMovingAverage(num_updates)`, so short runs can use the decay of long ones. Buffers
    (a codebook is its own moving average) are not averaged. `torch.optim.swa_utils.AveragedModel`
    would give other bits: its first update copies the weights, and each one copies the buffers.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: weight.detach().clone() for name, weight in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average after step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [weight.detach() for weight in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights, inside the block."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, weight in model.named_parameters():
            kept = weight.detach().clone()
            weight.copy_(self.weights[name])  # in place: a sharded weight is a part of a buffer
            self.weights[name].copy_(kept)
