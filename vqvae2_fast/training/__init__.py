"""Training of both stages, and checkpoints."""

from vqvae2_fast.training.checkpoint import DamagedError, load, resume, save
from vqvae2_fast.training.config import TrainConfig, learning_rate
from vqvae2_fast.training.extraction import Variants, extract_codes
from vqvae2_fast.training.interrupt import InterruptedRun
from vqvae2_fast.training.loop import DivergedError, Stage, TrainResult, train
from vqvae2_fast.training.pretrained import from_preset, pretrained_folder, pretrained_names
from vqvae2_fast.training.progress import Progress
from vqvae2_fast.training.stage1 import vqvae_stage
from vqvae2_fast.training.stage2 import prior_stage

__all__ = [
    "DamagedError",
    "DivergedError",
    "InterruptedRun",
    "Progress",
    "Stage",
    "TrainConfig",
    "TrainResult",
    "Variants",
    "extract_codes",
    "from_preset",
    "learning_rate",
    "load",
    "pretrained_folder",
    "pretrained_names",
    "prior_stage",
    "resume",
    "save",
    "train",
    "vqvae_stage",
]
