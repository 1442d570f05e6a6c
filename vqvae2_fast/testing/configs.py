"""Small configurations of both stages, for tests of what models go through; `replace` varies them.

SMALL: two levels, and the bottom prior with all its parts. TINY: one level.
"""

from __future__ import annotations

from dataclasses import replace

from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config

__all__ = ["SMALL_PRIOR", "SMALL_TOP", "SMALL_VQVAE", "TINY_PRIOR", "TINY_VQVAE"]

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
