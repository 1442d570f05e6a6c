"""Training of both stages, and checkpoints."""

from vqvae2_fast.training.checkpoint import from_preset, load, resume, save
from vqvae2_fast.training.config import TrainConfig, learning_rate
from vqvae2_fast.training.loop import DivergedError, Stage, TrainResult, train
from vqvae2_fast.training.progress import Progress
from vqvae2_fast.training.stage1 import vqvae_stage
from vqvae2_fast.training.stage2 import held_out_batches, prior_stage

__all__ = [
    "DivergedError", "Progress", "Stage", "TrainConfig", "TrainResult", "from_preset",
    "held_out_batches", "learning_rate", "load", "prior_stage", "resume", "save", "train",
    "vqvae_stage",
]  # fmt: skip
