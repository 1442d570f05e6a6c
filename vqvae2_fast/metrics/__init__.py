"""Measures of both stages: reconstruction, likelihood, use of the codebooks, codecs beside them."""

from vqvae2_fast.metrics.codebook import CodebookUse, codebook_use
from vqvae2_fast.metrics.codecs import CodecPoint, webp_at_bits, webp_curve
from vqvae2_fast.metrics.likelihood import (
    Likelihood,
    marginal_entropy,
    prior_labels,
    prior_likelihood,
)
from vqvae2_fast.metrics.pipeline import evaluate_pipeline
from vqvae2_fast.metrics.reconstruction import Reconstruction, psnr, reconstruction_error

__all__ = [
    "CodebookUse", "CodecPoint", "Likelihood", "Reconstruction", "codebook_use",
    "evaluate_pipeline", "marginal_entropy", "prior_labels", "prior_likelihood", "psnr",
    "reconstruction_error", "webp_at_bits", "webp_curve",
]  # fmt: skip
