"""Configurations of the two kinds of model, and the presets.

A configuration is a frozen dataclass: it is checked when it is made, written into checkpoints as
JSON, and typed on the command line. Sizes are (height, width); lists of levels go coarse to fine,
except `strides`, which read as an image is encoded: fine to coarse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "PixelSNAILConfig",
    "PresetConfig",
    "VQVAE2Config",
    "level_names",
    "preset",
    "preset_names",
]

Mask = Literal["exclude", "include", "down", "downright"]


def level_names(num_levels: int) -> tuple[str, ...]:
    """Names of the levels, coarse to fine: `top`, `middle` (or `middle1`, `middle2`), `bottom`."""
    if num_levels == 1:
        return ("top",)
    middles = num_levels - 2
    between = ("middle",) if middles == 1 else tuple(f"middle{i + 1}" for i in range(middles))
    return ("top", *between, "bottom")


@dataclass(frozen=True)
class VQVAE2Config:
    """Stage 1: a hierarchical VQ-VAE (sections 3.1 and 3.2 of https://arxiv.org/abs/1906.00446).

    Args:
        image_size: Height and width of the images; each must be a multiple of all strides together.
        strides: Downsampling of each encoder, fine to coarse, powers of two; one to four levels.
        hidden_channels: Channels of the encoders and decoders ("hidden units").
        residual_channels: Channels inside a residual block ("residual units").
        num_residual_blocks: Residual blocks of each encoder and decoder.
        num_embeddings: K, codes per level.
        embedding_dim: D, dimension of a code.
        commitment_cost: Weight β of the commitment loss, eq. 3 of https://arxiv.org/abs/1711.00937.
        init, ema_start, restart, gradient, quantize_after: Codebook rules, see
            `VectorQuantizerEMA`.
        seed: Seed of the codebook's start and restarts.
    """

    image_size: tuple[int, int] = (256, 256)
    image_channels: int = 3
    strides: tuple[int, ...] = (4, 2)
    hidden_channels: int = 128
    residual_channels: int = 64
    num_residual_blocks: int = 2
    num_embeddings: int = 512
    embedding_dim: int = 64
    commitment_cost: float = 0.25
    decay: float = 0.99
    epsilon: float = 1e-5
    init: Literal["kmeans", "normal", "uniform"] = "kmeans"
    ema_start: Literal["one", "zero", "debiased"] = "one"
    restart: float = 0.03
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    seed: int = 0
    quantize_after: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.strides) <= 4:
            raise ValueError(f"VQVAE2Config: strides must name 1 to 4 levels, got {self.strides}.")
        for stride in self.strides:
            if stride < 2 or stride & (stride - 1):
                raise ValueError(
                    "VQVAE2Config: each of strides must be a power of two >= 2, got "
                    f"{self.strides}."
                )
        for name in (
            "image_channels",
            "hidden_channels",
            "residual_channels",
            "num_embeddings",
            "embedding_dim",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"VQVAE2Config: {name} must be >= 1, got {getattr(self, name)}.")
        total = math.prod(self.strides)
        if len(self.image_size) != 2:
            raise ValueError(
                f"VQVAE2Config: image_size must be (height, width), got {tuple(self.image_size)}."
            )
        if any(side < total or side % total for side in self.image_size):
            raise ValueError(
                f"VQVAE2Config: image_size must be a multiple of {total} (strides {self.strides}) "
                f"in both directions, got {self.image_size}."
            )

    @property
    def num_levels(self) -> int:
        return len(self.strides)

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each code map, coarse to fine."""
        height, width = self.image_size
        sizes = []
        for stride in self.strides:
            height, width = height // stride, width // stride
            sizes.append((height, width))
        return tuple(reversed(sizes))


@dataclass(frozen=True)
class PixelSNAILConfig:
    """Stage 2: an autoregressive prior over one level's code map (section 3.2 of the paper).

    Args:
        size: Height and width of the code map.
        num_embeddings: K, codes of this level and of the maps that condition it.
        channels: Channels between layers ("hidden units").
        residual_channels: Channels inside a gated residual layer ("residual units").
        num_blocks: Blocks; each is `layers_per_block` gated residual layers and then attention
            (or, without attention, a 1×1 layer that sees the position).
        layers_per_block: Gated residual layers of a block: attention stands every so many layers.
        kernel_size: Side of the causal convolutions, odd.
        mask: Which taps of the current row a layer reads; see `ops.causal_conv2d`.
        attention: Whether blocks end in causal multi-head attention.
        num_heads: Attention heads; `channels // 2` must be a multiple of it.
        dropout: After the first convolution of each residual layer.
        attention_dropout: Of the attention; on its logits, as in the paper, or its probabilities.
        num_output_layers: Residual 1×1 layers on top ("output stack layers").
        condition_sizes: Sizes of all coarser code maps, coarse to fine; empty for the top.
        condition_channels: Channels of the conditioning stack.
        num_condition_layers: Residual layers of the conditioning stack.
        num_classes: Classes; 0 for an unconditional prior. Label `num_classes` is "no class".
        weight_norm: Weight-normalised convolutions (https://arxiv.org/abs/1602.07868).
    """

    size: tuple[int, int] = (32, 32)
    num_embeddings: int = 512
    channels: int = 512
    residual_channels: int = 512
    num_blocks: int = 4
    layers_per_block: int = 5
    kernel_size: int = 5
    mask: Mask = "include"
    attention: bool = True
    num_heads: int = 8
    dropout: float = 0.1
    attention_dropout: float = 0.1
    attention_dropout_on: Literal["logits", "probabilities"] = "logits"
    num_output_layers: int = 0
    condition_sizes: tuple[tuple[int, int], ...] = ()
    condition_channels: int = 256
    num_condition_layers: int = 3
    condition_kernel_size: int = 3
    num_classes: int = 0
    weight_norm: bool = True

    def __post_init__(self) -> None:
        if self.mask not in ("exclude", "include", "down", "downright"):
            raise ValueError(
                "PixelSNAILConfig: mask must be one of 'exclude', 'include', 'down', 'downright', "
                f"got {self.mask!r}."
            )
        if self.kernel_size % 2 == 0 and self.mask != "downright":
            raise ValueError(
                f"PixelSNAILConfig: kernel_size must be odd for mask {self.mask!r}, "
                f"got {self.kernel_size}."
            )
        if self.attention and (self.channels // 2) % self.num_heads:
            raise ValueError(
                f"PixelSNAILConfig: channels // 2 must be a multiple of num_heads, got channels="
                f"{self.channels} and num_heads={self.num_heads}."
            )
        for height, width in self.condition_sizes:
            if self.size[0] % height or self.size[1] % width:
                raise ValueError(
                    f"PixelSNAILConfig: size {self.size} must be a multiple of each of "
                    f"condition_sizes, got {(height, width)}."
                )

    @property
    def num_layers(self) -> int:
        return self.num_blocks * self.layers_per_block


@dataclass(frozen=True)
class PresetConfig:
    """A VQ-VAE and the priors of its levels, coarse to fine."""

    vqvae: VQVAE2Config
    priors: tuple[PixelSNAILConfig, ...]

    def with_classes(self, num_classes: int) -> PresetConfig:
        """The same preset with class-conditional priors at every level."""
        priors = tuple(replace(prior, num_classes=num_classes) for prior in self.priors)
        return replace(self, priors=priors)


def _paper_top(**overrides: object) -> PixelSNAILConfig:
    """Top prior of ImageNet 256, from the paper's appendix (from memory; see README, presets)."""
    values: dict[str, object] = {
        "size": (32, 32),
        "channels": 512,
        "residual_channels": 2048,
        "num_blocks": 4,
        "layers_per_block": 5,
        "num_heads": 8,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "num_output_layers": 20,
    }
    return PixelSNAILConfig(**{**values, **overrides})  # type: ignore[arg-type]


def _paper_bottom(**overrides: object) -> PixelSNAILConfig:
    """Bottom prior of ImageNet 256: no attention, a deep residual conditioning stack."""
    values: dict[str, object] = {
        "size": (64, 64),
        "channels": 512,
        "residual_channels": 1024,
        "num_blocks": 4,
        "layers_per_block": 5,
        "attention": False,
        "dropout": 0.1,
        "condition_sizes": ((32, 32),),
        "condition_channels": 512,
        "num_condition_layers": 20,
    }
    return PixelSNAILConfig(**{**values, **overrides})  # type: ignore[arg-type]


def _small_priors(
    sizes: tuple[tuple[int, int], tuple[int, int]], num_embeddings: int, num_classes: int
) -> tuple[PixelSNAILConfig, PixelSNAILConfig]:
    """Priors that train in minutes on two cores; sized by measurement (README, presets)."""
    top, bottom = sizes
    shared: dict[str, object] = {
        "num_embeddings": num_embeddings,
        "num_classes": num_classes,
        "channels": 64,
        "residual_channels": 64,
        "layers_per_block": 2,
        "kernel_size": 3,
        "num_heads": 4,
    }
    return (
        PixelSNAILConfig(size=top, num_blocks=2, **shared),  # type: ignore[arg-type]
        PixelSNAILConfig(
            size=bottom,
            num_blocks=2,
            attention=False,
            condition_sizes=(top,),
            condition_channels=64,
            num_condition_layers=2,
            **shared,  # type: ignore[arg-type]
        ),
    )


_PAPER_VQVAE = VQVAE2Config()
_FFHQ1024_PRIORS = (
    _paper_top(num_output_layers=0, dropout=0.5, attention_dropout=0.5),
    PixelSNAILConfig(
        size=(64, 64),
        channels=512,
        residual_channels=1024,
        num_blocks=1,
        layers_per_block=20,
        attention=True,
        dropout=0.3,
        attention_dropout=0.3,
        condition_sizes=((32, 32),),
        condition_channels=512,
        num_condition_layers=8,
    ),
    _paper_bottom(
        size=(128, 128),
        num_blocks=2,
        dropout=0.25,
        condition_sizes=((32, 32), (64, 64)),
        num_condition_layers=8,
    ),
)

# The VQ-VAE rows are the paper's appendix table. The prior rows of ImageNet and FFHQ are recalled
# from the same appendix; `ffhq256` is the ImageNet shape without classes (not in the paper).
_PRESETS = {
    "imagenet256": PresetConfig(
        _PAPER_VQVAE, (_paper_top(num_classes=1000), _paper_bottom(num_classes=1000))
    ),
    "ffhq256": PresetConfig(_PAPER_VQVAE, (_paper_top(), _paper_bottom())),
    "ffhq1024": PresetConfig(
        replace(_PAPER_VQVAE, image_size=(1024, 1024), strides=(8, 2, 2)), _FFHQ1024_PRIORS
    ),
    "emoji32": PresetConfig(
        VQVAE2Config(
            image_size=(32, 32),
            strides=(2, 2),
            hidden_channels=48,
            residual_channels=48,
            num_embeddings=256,
            embedding_dim=32,
            restart=0.3,
        ),
        _small_priors(((8, 8), (16, 16)), 256, num_classes=9),
    ),
    "emoji64": PresetConfig(
        VQVAE2Config(
            image_size=(64, 64),
            strides=(4, 2),
            hidden_channels=64,
            residual_channels=64,
            num_embeddings=512,
            embedding_dim=64,
            quantize_after=100,
        ),
        _small_priors(((8, 8), (16, 16)), 512, num_classes=9),
    ),
    "fashion28": PresetConfig(
        VQVAE2Config(
            image_size=(28, 28),
            image_channels=1,
            strides=(2, 2),
            hidden_channels=48,
            residual_channels=48,
            num_embeddings=128,
            embedding_dim=32,
            quantize_after=100,
        ),
        _small_priors(((7, 7), (14, 14)), 128, num_classes=10),
    ),
}


def preset_names() -> tuple[str, ...]:
    return tuple(_PRESETS)


def preset(name: str) -> PresetConfig:
    """The configuration behind a preset's name."""
    if name not in _PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(_PRESETS)}, got {name!r}.")
    return _PRESETS[name]
