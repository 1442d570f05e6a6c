"""Training: the loop, what each stage brings to it, and the recipe from images to a pipeline."""

from vqvae2_fast.machine.freed_memory import keep_freed_memory
from vqvae2_fast.training.config import TrainConfig, learning_rate
from vqvae2_fast.training.extraction import Variants, extract_codes
from vqvae2_fast.training.loop import DivergedError, TrainResult, train
from vqvae2_fast.training.optimizer import Muon
from vqvae2_fast.training.preset import Preset, PresetTraining
from vqvae2_fast.training.recipe import TrainedPipeline, train_pipeline
from vqvae2_fast.training.stage import Stage
from vqvae2_fast.training.stage1 import vqvae_stage
from vqvae2_fast.training.stage2 import prior_stage

__all__ = [
    "DivergedError",
    "Muon",
    "Preset",
    "PresetTraining",
    "Stage",
    "TrainConfig",
    "TrainResult",
    "TrainedPipeline",
    "Variants",
    "extract_codes",
    "keep_freed_memory",
    "learning_rate",
    "prior_stage",
    "train",
    "train_pipeline",
    "vqvae_stage",
]
