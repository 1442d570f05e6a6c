"""Checkpoints: models, pipelines and trainings as folders of safetensors and JSON."""

from vqvae2_fast.checkpoints.checkpoint import load, load_training, save
from vqvae2_fast.checkpoints.files import DamagedError
from vqvae2_fast.checkpoints.pretrained import from_preset, pretrained_folder, pretrained_names

__all__ = [
    "DamagedError",
    "from_preset",
    "load",
    "load_training",
    "pretrained_folder",
    "pretrained_names",
    "save",
]
