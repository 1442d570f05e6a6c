"""A network that is trained beside the model, such as a discriminator, kept in its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Companion"]


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
