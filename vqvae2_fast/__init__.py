"""vqvae2_fast: VQ-VAE-2 (https://arxiv.org/abs/1906.00446) with compiled kernels.

`ops` holds the operators; the modules, models and samplers below are built on them.
"""

from vqvae2_fast import ops
from vqvae2_fast.checkpoints.checkpoint import load, save
from vqvae2_fast.checkpoints.hub import from_pretrained, push_to_hub
from vqvae2_fast.checkpoints.pretrained import from_preset
from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2, VQVAE2Output
from vqvae2_fast.modules.binary import BSQ, LFQ
from vqvae2_fast.modules.fsq import FSQ
from vqvae2_fast.modules.grouped import GroupedResidualVQ
from vqvae2_fast.modules.learnt_codes import SimVQ
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.residual_fsq import ResidualFSQ
from vqvae2_fast.modules.residual_vq import ResidualVQ
from vqvae2_fast.presets import preset, preset_names
from vqvae2_fast.sampling import (
    Pipeline,
    calibrate,
    fill,
    sample_codes,
    sample_images,
    score_codes,
    stream_images,
)
from vqvae2_fast.training.preset import Preset

__version__ = "0.1.0"

__all__ = [
    "BSQ",
    "FSQ",
    "LFQ",
    "VQVAE2",
    "GroupedResidualVQ",
    "Pipeline",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "Preset",
    "ResidualFSQ",
    "ResidualVQ",
    "SimVQ",
    "VQVAE2Config",
    "VQVAE2Output",
    "VectorQuantizerEMA",
    "calibrate",
    "fill",
    "from_preset",
    "from_pretrained",
    "load",
    "ops",
    "preset",
    "preset_names",
    "push_to_hub",
    "sample_codes",
    "sample_images",
    "save",
    "score_codes",
    "stream_images",
]
