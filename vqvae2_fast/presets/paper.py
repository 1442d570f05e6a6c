"""Models of the paper's size: weeks of training on many GPUs.

The VQ-VAE rows, with their batches and steps, are the appendix table of
https://arxiv.org/abs/1906.00446. The prior rows are recalled from the same appendix. Optimisers and
rates are not in the paper: 3e-4 is the rate of sonnet's example and of the widely used port.
`ffhq256` is not in the paper either: ImageNet's models without classes, trained as FFHQ's.
"""

from __future__ import annotations

from dataclasses import replace

from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.training.config import TrainConfig
from vqvae2_fast.training.preset import Preset, PresetTraining

__all__ = ["PAPER"]

_VQVAE = VQVAE2Config()
_TOP = PixelSNAILConfig(
    size=(32, 32),
    channels=512,
    residual_channels=2048,
    num_blocks=4,
    layers_per_block=5,
    num_heads=8,
    dropout=0.1,
    attention_dropout=0.1,
    num_output_layers=20,
)
# No attention, but a deep residual conditioning stack.
_BOTTOM = PixelSNAILConfig(
    size=(64, 64),
    channels=512,
    residual_channels=1024,
    num_blocks=4,
    layers_per_block=5,
    attention=False,
    dropout=0.1,
    condition_sizes=((32, 32),),
    condition_channels=512,
    num_condition_layers=20,
)
_FFHQ1024_PRIORS = (
    replace(_TOP, num_output_layers=0, dropout=0.5, attention_dropout=0.5),
    replace(
        _BOTTOM,
        num_blocks=1,
        layers_per_block=20,
        attention=True,
        dropout=0.3,
        attention_dropout=0.3,
        num_condition_layers=8,
    ),
    replace(
        _BOTTOM,
        size=(128, 128),
        num_blocks=2,
        dropout=0.25,
        condition_sizes=((32, 32), (64, 64)),
        num_condition_layers=8,
    ),
)


def _vqvae(steps: int) -> TrainConfig:
    return TrainConfig(
        steps=steps, batch_size=128, learning_rate=3e-4, save_every=5000, validate_every=5000
    )


def _prior(steps: int, batch_size: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=32,
        accumulate=batch_size // 32,
        learning_rate=3e-4,
        average_decay=0.9999,
        save_every=1000,
        validate_every=5000,
    )


_IMAGENET = PresetTraining(_vqvae(2_207_444), (_prior(1_600_000, 1024), _prior(754_000, 512)))
_FFHQ = PresetTraining(
    _vqvae(304_741), (_prior(237_000, 1024), _prior(57_400, 512), _prior(270_000, 256))
)

PAPER = {
    "imagenet256": Preset(_VQVAE, (_TOP, _BOTTOM), _IMAGENET).with_classes(1000),
    "ffhq256": Preset(_VQVAE, (_TOP, _BOTTOM), replace(_FFHQ, priors=_FFHQ.priors[:2])),
    "ffhq1024": Preset(
        replace(_VQVAE, image_size=(1024, 1024), strides=(8, 2, 2)), _FFHQ1024_PRIORS, _FFHQ
    ),
}
