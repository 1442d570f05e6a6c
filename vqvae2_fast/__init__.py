"""vqvae2_fast: VQ-VAE-2 with compiled kernels."""

from vqvae2_fast import ops

__version__ = "0.1.0"

__all__ = ["ops"]
