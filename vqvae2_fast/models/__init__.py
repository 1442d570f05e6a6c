"""Models and their configurations: VQ-VAE-2, its PixelSNAIL priors, and classifiers of images.

configs has the sizes that a model is made from (presets have names elsewhere, in `presets`),
code_checks the checks of codes and of priors that fit them, weights_hash the identity of a model's
weights.
"""

from vqvae2_fast.models.classifier import Classifier, ClassifierConfig
from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config, level_names
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2, VQVAE2Output
from vqvae2_fast.models.weights_hash import weights_hash

__all__ = [
    "VQVAE2",
    "Classifier",
    "ClassifierConfig",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "VQVAE2Config",
    "VQVAE2Output",
    "level_names",
    "weights_hash",
]
