"""Small configurations of both stages, and small random priors and pipelines of every kind.

SMALL: two levels, and the bottom prior with all its parts. TINY: one level. `dataclasses.replace`
varies them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling.pipeline import Pipeline

if TYPE_CHECKING:
    from vqvae2_fast.models.prior import Prior

__all__ = [
    "ODD_SIZES",
    "SMALL_PRIOR",
    "SMALL_TOP",
    "SMALL_VQVAE",
    "TINY_PRIOR",
    "TINY_VQVAE",
    "prior_inputs",
    "tiny_configs",
    "tiny_pipeline",
    "tiny_prior",
]


SMALL_VQVAE = VQVAE2Config(
    image_size=(8, 8),
    strides=(2, 2),
    hidden_channels=8,
    residual_channels=4,
    num_residual_blocks=1,
    num_embeddings=8,
    embedding_dim=4,
)
SMALL_TOP = PixelSNAILConfig(
    size=(2, 2),
    num_embeddings=8,
    channels=8,
    residual_channels=8,
    num_blocks=1,
    layers_per_block=1,
    kernel_size=3,
    num_heads=2,
    condition_channels=8,
    num_condition_layers=1,
)
SMALL_PRIOR = replace(SMALL_TOP, size=(4, 4), condition_sizes=((2, 2),), num_classes=3)
TINY_VQVAE = replace(
    SMALL_VQVAE,
    image_size=(4, 4),
    strides=(2,),
    hidden_channels=4,
    num_embeddings=4,
    embedding_dim=2,
)
TINY_PRIOR = replace(SMALL_TOP, num_embeddings=4, channels=4, residual_channels=4, num_heads=1)


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
        layout = config.label_layout
        labels = torch.randint(layout.first_word, (batch_size,), generator=generator, device="cpu")
        if config.num_words:  # two for each, either of which may be none
            places = (batch_size, 2)
            words = torch.randint(-1, config.num_words, places, generator=generator, device="cpu")
            words = torch.where(words < 0, -1, words + layout.first_word)
            labels = torch.cat([labels[:, None], words], dim=1)
    return {
        "codes": random_map(config.size),
        "condition": [random_map(size) for size in config.condition_sizes],
        "labels": labels,
    }


def tiny_pipeline(
    num_classes: int = 3,
    *,
    num_subclasses: int = 0,
    image_channels: int = 3,
    words: tuple[str, ...] = (),
) -> Pipeline:
    """Images of 16×16, maps of 4×4 and 8×8, 13 codes per level; in evaluation mode."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    config = VQVAE2Config(
        image_size=(16, 16),
        image_channels=image_channels,
        strides=(2, 2),
        hidden_channels=16,
        residual_channels=8,
        num_embeddings=13,
        embedding_dim=8,
    )
    vqvae = VQVAE2(config)
    # In training mode, so that the codebooks start from the vectors.
    vqvae(torch.rand(64, image_channels, 16, 16, dtype=torch.float32, device="cpu") * 2 - 1)
    torch.random.set_rng_state(state)
    classes = {
        "num_classes": num_classes,
        "num_subclasses": num_subclasses,
        "num_words": len(words),
    }
    top = tiny_prior(0, size=(4, 4), **classes)
    bottom = tiny_prior(1, size=(8, 8), condition_sizes=((4, 4),), **classes)
    top.word_names = bottom.word_names = words
    return Pipeline(vqvae.eval(), [top, bottom])
