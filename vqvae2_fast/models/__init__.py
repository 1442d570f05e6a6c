"""Models and their configurations: VQ-VAE-2, its PixelSNAIL priors, and classifiers of images.

configs has the sizes that a model is made from (presets have names elsewhere, in `presets`),
prior what every prior offers, code_checks the checks of codes and of priors that fit them,
code_colours what codes look like, weights_hash the identity of a model's weights.
"""

import pkgutil
from importlib import import_module

from vqvae2_fast.models.classifier import Classifier, ClassifierConfig
from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config, level_names
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.prior import Prior, PriorConfig
from vqvae2_fast.models.vqvae2 import VQVAE2, VQVAE2Output
from vqvae2_fast.models.weights_hash import weights_hash

__all__ = [
    "VQVAE2",
    "Classifier",
    "ClassifierConfig",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "Prior",
    "PriorConfig",
    "VQVAE2Config",
    "VQVAE2Output",
    "level_names",
    "weights_hash",
]

# Every file is imported, so that `load` knows the priors that it registers.
for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
