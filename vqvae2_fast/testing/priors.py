"""Small random priors of every kind that `PixelSNAIL` can be, for tests of engines."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.models.configs import PixelSNAILConfig
from vqvae2_fast.models.pixelsnail import PixelSNAIL

if TYPE_CHECKING:
    from vqvae2_fast.models.prior import Prior

__all__ = ["ODD_SIZES", "prior_inputs", "tiny_configs", "tiny_prior"]

# Arguments of `tiny_prior`: no size is a multiple of a panel, a word or a vector; heads have 9
# channels.
ODD_SIZES: dict[str, Any] = {
    "channels": 54,
    "residual_channels": 37,
    "num_heads": 3,
    "num_embeddings": 269,
    "num_output_layers": 1,
    "condition_sizes": ((1, 3), (2, 3)),
    "condition_channels": 21,
}
MASKS = ("exclude", "include", "down", "downright")
# Arguments of `DrawSettings`: each way to choose a code.
DRAWING_RULES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.6, "top_k": 5},
    {"top_p": 0.7},
    {"guidance_scale": 2.0, "temperature": 0.8},
)


def tiny_prior(seed: int = 0, **overrides: Any) -> PixelSNAIL:
    """A prior of a 4×6 map and 13 codes in evaluation mode; arguments of `PixelSNAILConfig`.

    No weight keeps a value that would hide a part of the network, such as a bias of zero.
    """
    values: dict[str, Any] = {
        "size": (4, 6),
        "num_embeddings": 13,
        "channels": 16,
        "residual_channels": 12,
        "num_blocks": 2,
        "layers_per_block": 2,
        "kernel_size": 3,
        "num_heads": 2,
        "condition_channels": 6,
        "num_condition_layers": 1,
    }
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    prior = PixelSNAIL(PixelSNAILConfig(**{**values, **overrides}))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    torch.random.set_rng_state(state)
    return prior.eval()


def tiny_configs() -> dict[str, dict[str, Any]]:
    """Arguments of `tiny_prior` by name: every mask × attention × condition × classes."""
    conditions = {"alone": (), "conditioned": ((2, 3),), "conditioned twice": ((1, 3), (2, 3))}
    configs = {}
    for mask, attention, (name, sizes), classes in product(
        MASKS, (True, False), conditions.items(), (0, 3)
    ):
        parts = (mask, "attention" if attention else "no attention", name)
        label = ", ".join(parts + (("classes",) if classes else ()))
        configs[label] = {
            "mask": mask,
            "attention": attention,
            "condition_sizes": sizes,
            "num_classes": classes,
        }
    return configs


def prior_inputs(prior: Prior, batch_size: int, seed: int = 0) -> dict[str, Any]:
    """Random `codes`, `condition` (list of maps) and `labels` (or None) that fit a prior."""
    config, generator = prior.config, torch.Generator().manual_seed(seed)

    def random_map(size: tuple[int, int]) -> Tensor:
        shape = (batch_size, *size)
        return torch.randint(config.num_embeddings, shape, generator=generator, device="cpu")

    labels = None
    if config.num_classes:
        labels = torch.randint(config.num_labels, (batch_size,), generator=generator, device="cpu")
    return {
        "codes": random_map(config.size),
        "condition": [random_map(size) for size in config.condition_sizes],
        "labels": labels,
    }
