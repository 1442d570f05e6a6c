"""Networks that are trained beside the model, for its loss: a discriminator, a class head.

VQGAN's loss, https://arxiv.org/abs/2012.09841, eq. 7: squared error + LPIPS + λ·adversarial, where
λ balances the two gradients at the decoder's last layer.

The class head reads the class from the top codes, and so puts it into them. A prior hardly uses the
class that it is given for fine details, so what distinguishes classes is best in the coarse codes,
which the prior models best. docs/reports has the figures. None of this is in the VQ-VAE-2 paper.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.files.kinds import Kind, check_fields, integer, number
from vqvae2_fast.modules.contexts import device_of, seeded, without_autocast
from vqvae2_fast.modules.patch_discriminator import LEAST_SIDE, PatchDiscriminator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vqvae2_fast.metrics import LPIPS
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = [
    "Adversary",
    "AdversarySettings",
    "ClassHead",
    "ClassHeadSettings",
    "Companion",
    "Fidelity",
    "watching_top",
]


class Companion:
    """A network with its own optimiser, which learns beside a model and has a part in its loss.

    Args:
        what: What it is, for messages: "discriminator".
        network: Trained in place.
        optimizer: AdamW of its weights.
    """

    # Whether the loss takes gradients that a compiled model cannot give.
    needs_eager = False
    # The group of settings that it belongs to, for messages: "adversary".
    group = ""

    def __init__(self, what: str, network: nn.Module, optimizer: torch.optim.AdamW) -> None:
        self.what, self.network, self.optimizer = what, network, optimizer
        self.steps = 0

    @property
    def training_bytes(self) -> int:
        """Weights, gradients, AdamW's two moments and buffers."""
        weights = sum(weight.nbytes for weight in self.network.parameters())
        return 4 * weights + sum(value.nbytes for value in self.network.buffers())

    def step(self) -> None:
        """Move the network by the gradients since the last step."""
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def tensors(self) -> dict[str, Tensor]:
        """Weights, moments and the number of steps, by name."""
        found = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, weight in self.network.named_parameters():
            moments = self.optimizer.state[weight]
            found |= {f"{key}.{name}": value for key, value in moments.items()}
        return {**found, "steps": torch.tensor(self.steps, dtype=torch.int64, device="cpu")}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave.

        Raises:
            ValueError: They are of another network.
        """
        weights = dict(self.network.named_parameters())
        network = {n[8:]: value for n, value in tensors.items() if n.startswith("network.")}
        try:
            self.network.load_state_dict(network)
            self.steps = int(tensors["steps"])
            moments = {name: _moments(tensors, name, weight) for name, weight in weights.items()}
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(
                f"the run's {self.what} has other layers than the one asked for; use the "
                "settings that the run was begun with."
            ) from error
        for name, weight in weights.items():
            self.optimizer.state[weight] = moments[name]


def _moments(tensors: Mapping[str, Tensor], name: str, weight: Tensor) -> dict[str, Tensor]:
    """AdamW's tensors of a weight; none before its first step.

    Raises:
        ValueError: One is missing, or of another size or type.
    """
    sizes = {"step": torch.Size(), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
    found = {key: tensors[f"{key}.{name}"] for key in sizes if f"{key}.{name}" in tensors}
    for key, size in sizes.items():
        if found and (
            key not in found or found[key].shape != size or found[key].dtype != torch.float32
        ):
            raise ValueError(f"{key}.{name}")
    return {
        key: value.clone() if key == "step" else value.to(weight.device, copy=True)
        for key, value in found.items()
    }


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
        check_fields(
            self,
            "adversary.",
            weight=number(0),
            start=integer(0),
            ramp=integer(0),
            learning_rate=number(above=0),
            channels=Kind("a multiple of 4", lambda value: value >= 4 and value % 4 == 0),
        )


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
        check_fields(self, perceptual_weight=number(0))
        if self.perceptual_weight and self.perceptual is None:
            raise ValueError(
                f"expected LPIPS as perceptual with perceptual_weight={self.perceptual_weight}, "
                "got None."
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
        check_fields(
            self,
            "class_head.",
            weight=number(0),
            channels=integer(1),
            learning_rate=number(above=0),
        )


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
