"""A small random pipeline, for tests of what is drawn from one."""

from __future__ import annotations

import torch

from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.testing.priors import tiny_prior

__all__ = ["tiny_pipeline"]


def tiny_pipeline(
    num_classes: int = 3, *, num_subclasses: int = 0, image_channels: int = 3
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
    classes = {"num_classes": num_classes, "num_subclasses": num_subclasses}
    top = tiny_prior(0, size=(4, 4), **classes)
    bottom = tiny_prior(1, size=(8, 8), condition_sizes=((4, 4),), **classes)
    return Pipeline(vqvae.eval(), [top, bottom])
