"""A head that reads the class from the top codes: stage 1 then puts the class into them.

Not in the paper. A prior that is told the class hardly uses it for fine details, so what tells the
class is best in the coarse codes, which the prior models best. docs/reports has the figures.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.modules.autocast import without_autocast
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.modules.seeded import seeded
from vqvae2_fast.training.companion import Companion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["ClassHead", "ClassHeadSettings", "watching_top"]


@dataclass(frozen=True)
class ClassHeadSettings:
    """How a class head takes part.

    Args:
        weight: Of its cross-entropy, in nats, in the loss of the VQ-VAE; 0 for no head.
        channels: Of its convolutions.
        learning_rate: Of the head.
    """

    weight: float = 0.0
    channels: int = 96
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        # The names are those of the group, since other settings have a weight and a rate too.
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"class_head.weight must be >= 0 and finite, got {self.weight}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"class_head.learning_rate must be > 0 and finite, got {self.learning_rate}."
            )
        if self.channels < 1:
            raise ValueError(f"class_head.channels must be >= 1, got {self.channels}.")


class _Network(nn.Module):
    """Maps `[B, D, h, w]` to logits `[B, classes]`.

    Attributes:
        spread: Standard deviation of the maps of the latest step, float32, 0-d.
    """

    spread: Tensor

    def __init__(self, dim: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(dim, channels, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(channels, num_classes)
        self.register_buffer("spread", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x / self.spread)
        for block in self.blocks:
            x = x + block(x.relu())
        logits: Tensor = self.head(x.relu().mean((2, 3)))
        return logits


@contextmanager
def watching_top(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that gets the quantised top map, `[B, h, w, D]`, of a VQ-VAE's forward inside."""
    seen: list[Tensor] = []
    top = cast("VQVAE2", model).quantizers[0]
    hook = top.register_forward_hook(lambda _module, _inputs, out: seen.append(out[0]))
    try:
        yield seen
    finally:
        hook.remove()


class ClassHead(Companion):
    """Reads the class from the quantised top map of a VQ-VAE; its cross-entropy trains both.

    The map is divided by the standard deviation of all maps of the step before: that of a
    micro-batch would make the course of a training depend on how its steps are cut. The first step
    divides by 1.

    Raises:
        ValueError: Fewer than two classes, or a weight of 0.
    """

    group = "class_head"

    def __init__(
        self, model: VQVAE2, num_classes: int, settings: ClassHeadSettings, seed: int
    ) -> None:
        if num_classes < 2:
            raise ValueError(
                f"expected images of two or more classes, got {num_classes}. Put each "
                "class into a folder of its own, or train without a class head: "
                "class_head.weight=0."
            )
        if not settings.weight:
            raise ValueError(
                "expected class_head.weight > 0, got 0, with which it teaches the model "
                "nothing: train without a class head instead."
            )
        self.settings = settings
        with seeded(seed):
            network = _Network(model.config.embedding_dim, settings.channels, num_classes)
        network.to(device_of(model))
        optimizer = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, weight_decay=0.02
        )
        super().__init__("class head", network, optimizer)
        self._moments: list[Tensor] = []  # of the maps since the last step, see `_moments_of`

    def loss(self, quantized: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What it adds to the loss, and its cross-entropy and accuracy, detached; all 0-d.

        Args:
            quantized: The top map, `[B, h, w, D]`, with its gradient to the encoder.
            labels: int64, `[B]`.
        """
        with without_autocast(quantized.device):
            maps = quantized.float().movedim(-1, 1)  # [B, h, w, D] -> [B, D, h, w]
            logits = self.network(maps)
            self._moments.append(_moments_of(maps.detach()))
            labels = labels.to(logits.device)
            entropy = F.cross_entropy(logits, labels)
        right = (logits.argmax(1) == labels).float().mean()
        parts = {"class": entropy.detach(), "class_accuracy": right}
        return self.settings.weight * entropy, parts

    def step(self) -> None:
        """Move the head, as if its cross-entropy had weight 1 for it."""
        for weight in self.network.parameters():
            if weight.grad is not None:
                weight.grad /= self.settings.weight
        if self._moments:
            count, total, squares = torch.stack(self._moments).sum(0)
            variance = (squares / count - (total / count).square()).clamp(min=0)
            # Maps that have collapsed are not blown up when they recover.
            cast("_Network", self.network).spread.copy_(variance.sqrt().clamp(min=1e-3))
            self._moments.clear()
        super().step()

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave; see `Companion.take`."""
        # The checkpoints of the first versions have no spread.
        super().take(
            {"network.spread": torch.ones((), dtype=torch.float32, device="cpu"), **tensors}
        )


def _moments_of(maps: Tensor) -> Tensor:
    """Their count, their sum and that of their squares, float64 `[3]`."""
    values = maps.double()
    count = values.new_full((), values.numel())
    return torch.stack([count, values.sum(), values.square().sum()])
