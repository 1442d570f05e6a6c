"""Models of small images that train in minutes on two cores; sized by measurement."""

from __future__ import annotations

from dataclasses import replace

from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.training.config import TrainConfig
from vqvae2_fast.training.extraction import Variants
from vqvae2_fast.training.preset import Preset, PresetTraining

__all__ = ["SMALL"]


def small_priors(
    vqvae: VQVAE2Config, channels: int = 64, num_classes: int = 0
) -> tuple[PixelSNAILConfig, PixelSNAILConfig]:
    """Priors of the two levels of a VQ-VAE: attention at the top, conditioning at the bottom."""
    top, bottom = vqvae.level_sizes

    def prior(size: tuple[int, int], *, attention: bool) -> PixelSNAILConfig:
        return PixelSNAILConfig(
            size=size,
            num_embeddings=vqvae.num_embeddings,
            channels=channels,
            residual_channels=channels,
            num_blocks=2,
            layers_per_block=2,
            kernel_size=3,
            attention=attention,
            num_heads=4,
            condition_sizes=() if attention else (top,),
            condition_channels=256 if attention else channels,
            num_condition_layers=3 if attention else 2,
            num_classes=num_classes,
        )

    return prior(top, attention=True), prior(bottom, attention=False)


_EMOJI32 = VQVAE2Config(
    image_size=(32, 32),
    strides=(2, 2),
    hidden_channels=48,
    residual_channels=48,
    num_embeddings=256,
    embedding_dim=32,
    restart=0.3,
    quantize_after=50,
)
_EMOJI64 = VQVAE2Config(
    image_size=(64, 64),
    strides=(4, 2),
    hidden_channels=64,
    residual_channels=64,
    num_embeddings=512,
    embedding_dim=64,
    quantize_after=100,
)
_FASHION28 = VQVAE2Config(
    image_size=(28, 28),
    image_channels=1,
    strides=(2, 2),
    hidden_channels=48,
    residual_channels=48,
    num_embeddings=128,
    embedding_dim=32,
    quantize_after=100,
)

_TRAINING = PresetTraining(
    vqvae=TrainConfig(
        steps=1300,
        learning_rate=3e-3,
        warmup_steps=50,
        precision="auto",
        validate_every=130,
        save_every=650,
    ),
    # Held-out bits per image at 600 and 400 steps by peak rate (top, bottom): 277, 941 at 3e-3;
    # 268, 898 at 6e-3; 264, 873 at 1.2e-2, where the top begins to overfit.
    priors=(
        TrainConfig(
            steps=700,
            learning_rate=8e-3,
            warmup_steps=50,
            average_decay=0.99,
            precision="auto",
            validate_every=100,
            save_every=350,
        ),
        TrainConfig(
            steps=800,
            learning_rate=1.2e-2,
            warmup_steps=50,
            average_decay=0.99,
            precision="auto",
            validate_every=160,
            save_every=400,
        ),
    ),
    # Held-out bits of the top level: 230 with it after 700 steps. Without it the minimum is 229,
    # after 750 steps, and they rise again (236 at 1000). Samples of small classes improve much:
    # People & Body is 60 % of the emoji, Flags has 7 images.
    class_balance=0.5,
)


def _emoji32() -> Preset:
    """With Muon, which reaches better images at fewer bits in less time: held out, 28.29 dB at
    284 bits (top) and 687 (bottom) after 800, 400 and 700 steps. AdamW's 28.06 dB at 234 and 901
    bits took 1,300 and 700 steps, and 800 of twice the batch. Without the codebooks' wait: 28.67 dB
    at 381 and 892 bits; with a learning rate of 1e-2 the top's codes are the same for all images.
    Changed copies of the images keep the priors from overfitting in so few steps, in which dropout
    does not help (at the bottom 684 bits with 0.1 after 800 steps, 681 without). For three times
    the steps the top prior needs it: 281 bits with 0.1, 288 without."""
    vqvae, (top, bottom) = _TRAINING.vqvae, _TRAINING.priors
    training = replace(
        _TRAINING,
        vqvae=replace(
            vqvae,
            optimizer="muon",
            learning_rate=5e-3,
            steps=800,
            validate_every=80,
            save_every=400,
        ),
        priors=(
            replace(top, optimizer="muon", learning_rate=5e-2, steps=400, save_every=200),
            replace(
                bottom,
                optimizer="muon",
                learning_rate=4e-2,
                batch_size=16,
                steps=700,
                average_decay=0.995,
            ),
        ),
        variants=Variants(flip=True, copies=2, zoom=0.05, colour=0.15),
    )
    of_top, of_bottom = (
        replace(prior, dropout=0.0, attention_dropout=0.0)
        for prior in small_priors(_EMOJI32, num_classes=9)
    )
    return Preset(_EMOJI32, (of_top, of_bottom), training)


def _avatars32() -> Preset:
    """The models and the recipe of emoji32, with more steps of the priors and no changed copies,
    since there are more images of fewer kinds: held out, 29.62 dB at 248 bits (top) and 359
    (bottom)."""
    of_emoji = _emoji32()
    top, bottom = of_emoji.training.priors
    training = replace(
        of_emoji.training,
        priors=(
            replace(top, steps=600, validate_every=150),
            replace(bottom, steps=900, validate_every=225),
        ),
        variants=Variants(flip=True),
    )
    of_top, of_bottom = (replace(prior, num_classes=8) for prior in of_emoji.priors)
    return Preset(_EMOJI32, (of_top, of_bottom), training)


def _avatars64() -> Preset:
    """The models of emoji64, with a longer bottom prior, since there are more images. The packaged
    weights are of wider priors, trained for longer."""
    top, bottom = _TRAINING.priors
    longer = replace(bottom, steps=1500, validate_every=300, save_every=750)
    return Preset(
        _EMOJI64,
        small_priors(_EMOJI64, num_classes=16),
        replace(_TRAINING, priors=(top, longer)),
    )


SMALL = {
    "emoji32": _emoji32(),
    "avatars32": _avatars32(),
    "emoji64": Preset(_EMOJI64, small_priors(_EMOJI64, num_classes=9), _TRAINING),
    "avatars64": _avatars64(),
    "fashion28": Preset(_FASHION28, small_priors(_FASHION28, num_classes=10), _TRAINING),
}
