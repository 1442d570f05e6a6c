"""Models for a folder of photographs: on a laptop (64 pixels) or one graphics card (128, 256).

The rate is the paper's: 9 bits for 16 pixels and 9 more for 64. So images of 64 pixels show the
subject of a photograph, and those of 256 its details. Classes and numbers of photographs follow
from the folder; the trainings suit hundreds to tens of thousands.
"""

from __future__ import annotations

from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.presets.small import small_priors
from vqvae2_fast.training.config import TrainConfig
from vqvae2_fast.training.extraction import Variants
from vqvae2_fast.training.preset import Preset, PresetTraining

__all__ = ["PHOTOS"]


def _photos(
    side: int,
    channels: int,
    prior_channels: int,
    *,
    batch_size: int,
    steps: tuple[int, int, int],
    learning_rate: float,
) -> Preset:
    """A preset of square images.

    Args:
        channels, prior_channels: Channels of the VQ-VAE's layers and of the priors'.
        batch_size: Batch size of the VQ-VAE; the priors take half of it.
        steps: Steps of the VQ-VAE, the top prior and the bottom prior.
        learning_rate: Learning rate of the VQ-VAE and of the priors.
    """
    vqvae = VQVAE2Config(
        image_size=(side, side),
        hidden_channels=channels,
        residual_channels=channels // 2,
        restart=0.1,
        quantize_after=100,
    )

    def training(count: int, batch: int, decay: float) -> TrainConfig:
        return TrainConfig(
            steps=count,
            batch_size=batch,
            learning_rate=learning_rate,
            warmup_steps=100,
            average_decay=decay,
            precision="auto",
            validate_every=max(200, count // 10),
            validate_items=1000,
            save_every=max(200, count // 10),
        )

    return Preset(
        vqvae,
        small_priors(vqvae, prior_channels),
        PresetTraining(
            training(steps[0], batch_size, 0.0),
            tuple(training(count, batch_size // 2, 0.995) for count in steps[1:]),
            flip=True,
            variants=Variants(flip=True),
        ),
    )


PHOTOS = {
    "photos64": _photos(64, 64, 64, batch_size=32, steps=(5000, 2000, 2000), learning_rate=2e-3),
    "photos128": _photos(
        128, 128, 128, batch_size=32, steps=(20_000, 30_000, 30_000), learning_rate=5e-4
    ),
    "photos256": _photos(
        256, 128, 256, batch_size=32, steps=(50_000, 100_000, 100_000), learning_rate=3e-4
    ),
}
