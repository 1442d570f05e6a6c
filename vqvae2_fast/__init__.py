"""vqvae2_fast: VQ-VAE-2 (https://arxiv.org/abs/1906.00446) with compiled kernels.

`ops` holds the operators; the modules, models and samplers are built on them. Each name below and
each folder of the package (`vqvae2_fast.codec`, `vqvae2_fast.metrics`, ...) is loaded when it is
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors see: the same names as `_HOMES`
    from vqvae2_fast import (
        checkpoints,
        codec,
        compat,
        data,
        export,
        metrics,
        models,
        modules,
        ops,
        presets,
        report,
        runs,
        sampling,
        serve,
        training,
    )
    from vqvae2_fast.checkpoints.checkpoint import load, save
    from vqvae2_fast.checkpoints.hub import from_pretrained, push_to_hub
    from vqvae2_fast.checkpoints.pretrained import from_preset
    from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
    from vqvae2_fast.models.pixelsnail import PixelSNAIL
    from vqvae2_fast.models.vqvae2 import VQVAE2, VQVAE2Output
    from vqvae2_fast.modules.binary import BSQ, LFQ
    from vqvae2_fast.modules.fsq import FSQ, ResidualFSQ
    from vqvae2_fast.modules.grouped import GroupedResidualVQ
    from vqvae2_fast.modules.learnt_codes import IBQ, SimVQ, VectorQuantizer, VQBridge
    from vqvae2_fast.modules.multi_scale import MultiScaleVQ
    from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
    from vqvae2_fast.modules.residual_vq import ResidualVQ
    from vqvae2_fast.pipeline_training import train
    from vqvae2_fast.presets import preset, preset_names
    from vqvae2_fast.sampling.batches import stream_images
    from vqvae2_fast.sampling.calibration import calibrate
    from vqvae2_fast.sampling.fill import fill
    from vqvae2_fast.sampling.pipeline import Pipeline, sample_images
    from vqvae2_fast.sampling.sampler import sample_codes, score_codes
    from vqvae2_fast.training.preset import Preset

# The modules that define the public names.
_HOMES = {
    "checkpoints.checkpoint": ("load", "save"),
    "checkpoints.hub": ("from_pretrained", "push_to_hub"),
    "checkpoints.pretrained": ("from_preset",),
    "models.configs": ("PixelSNAILConfig", "VQVAE2Config"),
    "models.pixelsnail": ("PixelSNAIL",),
    "models.vqvae2": ("VQVAE2", "VQVAE2Output"),
    "modules.binary": ("BSQ", "LFQ"),
    "modules.fsq": ("FSQ", "ResidualFSQ"),
    "modules.grouped": ("GroupedResidualVQ",),
    "modules.learnt_codes": ("IBQ", "SimVQ", "VQBridge", "VectorQuantizer"),
    "modules.multi_scale": ("MultiScaleVQ",),
    "modules.quantizer": ("VectorQuantizerEMA",),
    "modules.residual_vq": ("ResidualVQ",),
    "pipeline_training": ("train",),
    "presets": ("preset", "preset_names"),
    "sampling.batches": ("stream_images",),
    "sampling.calibration": ("calibrate",),
    "sampling.fill": ("fill",),
    "sampling.pipeline": ("Pipeline", "sample_images"),
    "sampling.sampler": ("sample_codes", "score_codes"),
    "training.preset": ("Preset",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BSQ",
    "FSQ",
    "IBQ",
    "LFQ",
    "VQVAE2",
    "GroupedResidualVQ",
    "MultiScaleVQ",
    "Pipeline",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "Preset",
    "ResidualFSQ",
    "ResidualVQ",
    "SimVQ",
    "VQBridge",
    "VQVAE2Config",
    "VQVAE2Output",
    "VectorQuantizer",
    "VectorQuantizerEMA",
    "calibrate",
    "checkpoints",
    "codec",
    "compat",
    "data",
    "export",
    "fill",
    "from_preset",
    "from_pretrained",
    "load",
    "metrics",
    "models",
    "modules",
    "ops",
    "preset",
    "preset_names",
    "presets",
    "push_to_hub",
    "report",
    "runs",
    "sample_codes",
    "sample_images",
    "sampling",
    "save",
    "score_codes",
    "serve",
    "stream_images",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        return globals().setdefault(name, value)
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
