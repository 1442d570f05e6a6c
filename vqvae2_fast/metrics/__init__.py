"""Measures of both stages, none of which draws, trains or plots.

`pipeline.py` measures a pipeline on images in one pass: errors of reconstructions
(`reconstruction.py`), what codes cost under the priors and how much of the codebooks they use
(`codes.py`), and what image codecs reach (`codecs.py`). `distances.py` has the table of
measures that compare sets of images in the features of a network, and `features.py` the registry of
networks. `results.py` holds what all of them find.
"""

from vqvae2_fast.metrics.accuracy import Accuracy, classification_accuracy
from vqvae2_fast.metrics.codecs import CODECS, CodecCurve, CodecPoint, codec_at_bits
from vqvae2_fast.metrics.codes import (
    CodebookUse,
    Likelihood,
    codebook_use,
    collision_rate,
    marginal_entropy,
    prior_labels,
    prior_likelihood,
)
from vqvae2_fast.metrics.distances import compare_sets
from vqvae2_fast.metrics.estimates import Estimate
from vqvae2_fast.metrics.features import FeatureSet, extract_features, open_features
from vqvae2_fast.metrics.perceptual import LPIPS, load_lpips
from vqvae2_fast.metrics.pipeline import evaluate_pipeline
from vqvae2_fast.metrics.reconstruction import (
    Reconstruction,
    psnr,
    reconstruction_error,
    structural_similarity,
)
from vqvae2_fast.metrics.set_measures import (
    Moments,
    Neighbours,
    frechet_distance,
    inception_score,
    kernel_distance,
    neighbour_measures,
)

__all__ = [
    "CODECS",
    "LPIPS",
    "Accuracy",
    "CodebookUse",
    "CodecCurve",
    "CodecPoint",
    "Estimate",
    "FeatureSet",
    "Likelihood",
    "Moments",
    "Neighbours",
    "Reconstruction",
    "classification_accuracy",
    "codebook_use",
    "codec_at_bits",
    "collision_rate",
    "compare_sets",
    "evaluate_pipeline",
    "extract_features",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_lpips",
    "marginal_entropy",
    "neighbour_measures",
    "open_features",
    "prior_labels",
    "prior_likelihood",
    "psnr",
    "reconstruction_error",
    "structural_similarity",
]
