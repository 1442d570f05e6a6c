"""What a VQ-VAE can be trained for beyond squared error: LPIPS, and a discriminator's judgement.

VQGAN's loss, https://arxiv.org/abs/2012.09841, eq. 7: squared error + LPIPS + λ·adversarial, where
λ balances the two gradients at the decoder's last layer. None of it is in the VQ-VAE-2 paper.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.modules.autocast import without_autocast
from vqvae2_fast.modules.patch_discriminator import LEAST_SIDE, PatchDiscriminator
from vqvae2_fast.modules.seeded import seeded
from vqvae2_fast.training.companion import Companion

if TYPE_CHECKING:
    from vqvae2_fast.metrics import LPIPS
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["Adversary", "AdversarySettings", "Fidelity"]

# The discriminator rests in a step in which its hinge loss (2 for one that knows nothing) is below
# this: one that is always right gives the decoder no direction, and reconstructions fall apart.
_RESTS_BELOW = 0.3
_MAX_BALANCE = 100.0  # of the gradients; a generator whose gradient vanishes is not chased further


@dataclass(frozen=True)
class AdversarySettings:
    """How a discriminator takes part.

    Args:
        weight: Of its judgement in the loss, after balancing; 0 for no discriminator.
        start: Optimiser steps in which only the discriminator learns.
        ramp: Optimiser steps over which the weight then rises from 0.
        learning_rate: Of the discriminator.
        channels: Of its first layer.
    """

    weight: float = 0.0
    start: int = 100
    ramp: int = 100
    learning_rate: float = 4e-4
    channels: int = 48

    def __post_init__(self) -> None:
        # The names are those of the group, since other settings have a weight and a rate too.
        for name in ("weight", "start", "ramp"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"adversary.{name} must be >= 0 and finite, got {getattr(self, name)}."
                )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"adversary.learning_rate must be > 0 and finite, got {self.learning_rate}."
            )
        if self.channels < 4 or self.channels % 4:
            raise ValueError(f"adversary.channels must be a multiple of 4, got {self.channels}.")


class Adversary(Companion):
    """A discriminator: `Fidelity` asks it for the loss and accumulates its gradients.

    Raises:
        ValueError: Images that are too small for patches.
    """

    # Its weight follows from the gradients of two losses with respect to one layer, and the
    # backward of a compiled decoder runs once only.
    needs_eager = True
    group = "adversary"

    def __init__(self, model: VQVAE2, settings: AdversarySettings, seed: int) -> None:
        config = model.config
        if min(config.image_size) < LEAST_SIDE:
            raise ValueError(
                f"expected images of at least {LEAST_SIDE} pixels a side for a "
                f"discriminator, got {config.image_size}. Train without one: adversary.weight=0."
            )
        self.settings = settings
        with seeded(seed):
            network = PatchDiscriminator(config.image_channels, settings.channels)
        network.to(next(model.parameters()).device)
        # β of the usual GAN trainings: the opponent moves, and old gradients mislead.
        optimizer = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, betas=(0.5, 0.9), weight_decay=0.0
        )
        super().__init__("discriminator", network, optimizer)
        # Loss and images of the micro-batches since the last step.
        self._losses: list[tuple[Tensor, int]] = []

    @property
    def weight(self) -> float:
        """The weight of the judgement in this step."""
        passed = self.steps - self.settings.start
        return self.settings.weight * min(max(passed / max(self.settings.ramp, 1), 0.0), 1.0)

    def judgement(self, reconstruction: Tensor) -> Tensor:
        """−mean score of the reconstructions, 0-d; it gives the discriminator no gradient."""
        self.network.requires_grad_(False)
        found: Tensor = -self.network(reconstruction).float().mean()
        self.network.requires_grad_(True)
        return found

    def learn(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Accumulate the gradients of the hinge loss; returns that loss, 0-d, detached."""
        with torch.enable_grad():
            scores = self.network(torch.cat([images, reconstruction.detach()])).float()
            real, made = scores.chunk(2)
            loss = F.relu(1 - real).mean() + F.relu(1 + made).mean()
            (loss * len(images)).backward()
        self._losses.append((loss.detach(), len(images)))
        return loss.detach()

    def step(self) -> None:
        """Move the discriminator by the mean gradient of the images since the last step, unless it
        rests."""
        if self._losses:
            images = sum(count for _, count in self._losses)
            total = torch.stack([loss * count for loss, count in self._losses]).sum()
            for weight in self.network.parameters():
                if weight.grad is not None:
                    weight.grad /= images
            if total / images < _RESTS_BELOW:
                self.optimizer.zero_grad(set_to_none=True)
        self._losses.clear()
        super().step()


@dataclass(frozen=True)
class Fidelity:
    """What a reconstruction should be, besides close in squared error.

    Args:
        perceptual, perceptual_weight: LPIPS and its weight. It gives sharper images of a lower
            PSNR.
        adversary: A discriminator, or None.

    Raises:
        ValueError: A negative or infinite weight, or a positive one without LPIPS.
    """

    perceptual: LPIPS | None = None
    perceptual_weight: float = 0.0
    adversary: Adversary | None = None

    def __post_init__(self) -> None:
        lacks_lpips = self.perceptual_weight > 0 and self.perceptual is None
        if not 0 <= self.perceptual_weight < math.inf or lacks_lpips:
            raise ValueError(
                "expected a finite perceptual_weight >= 0, and LPIPS if it is above 0, "
                f"got {self.perceptual_weight} and {'LPIPS' if self.perceptual else None}."
            )

    def added_to(
        self, total: Tensor, images: Tensor, reconstruction: Tensor, network: nn.Module
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with what is asked of the reconstruction, and its parts by name, detached.

        Args:
            total: The loss so far, 0-d.
            images, reconstruction: `[B, C, H, W]`, in [-1, 1] and near it.
            network: The VQ-VAE; gradients are balanced at the last layer of its decoder.
        """
        parts: dict[str, Tensor] = {}
        # With a discriminator two gradients with respect to the pixels are compared. Taking them
        # from a leaf runs LPIPS backward once, not once for the comparison and once for the step.
        made = reconstruction
        if self.adversary is not None:
            made = reconstruction.detach().float().requires_grad_()
        distance = torch.zeros((), device=images.device, dtype=torch.float32)
        if self.perceptual is not None and self.perceptual_weight:
            # In bfloat16 its gradient with respect to the pixels has a cosine of 0.91 to this one.
            with without_autocast(images.device):
                distance = self.perceptual_weight * self.perceptual(made.float(), images).mean()
            parts["lpips"] = distance.detach() / self.perceptual_weight
        if self.adversary is None:
            return total + distance, parts
        parts["discriminator"] = self.adversary.learn(images, reconstruction)
        gradient = _gradient(distance, made) if distance.requires_grad else torch.zeros_like(made)
        wanted = gradient + _gradient(F.mse_loss(made, images), made)
        balance = torch.zeros_like(parts["discriminator"])
        if weight := self.adversary.weight:
            judged = _gradient(self.adversary.judgement(made), made)
            last = network.decoder.layers[-1].weight  # type: ignore[union-attr, index]
            norms = [
                torch.autograd.grad(reconstruction, last, g.to(reconstruction), retain_graph=True)
                for g in (wanted, judged)
            ]
            balance = (norms[0][0].norm() / (norms[1][0].norm() + 1e-6)).clamp(max=_MAX_BALANCE)
            gradient = gradient + weight * balance * judged
        parts["balance"] = balance
        # Zero in value; its gradient with respect to the reconstruction is `gradient`.
        moved = ((reconstruction - reconstruction.detach()) * gradient).sum().float()
        return total + distance.detach() + moved, parts

    def identity(self) -> dict[str, Any]:
        """What the result of a training depends on, ready for JSON."""
        found: dict[str, Any] = {"perceptual_weight": self.perceptual_weight}
        # Distances in other features are not to be compared. Another kind of distance has no trunk.
        if trunk := getattr(self.perceptual, "trunk", None):
            found["lpips_network"] = trunk
        if self.adversary is not None:
            found["adversary"] = asdict(self.adversary.settings)
        return found


def _gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss, at)[0]
