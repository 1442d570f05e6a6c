"""Configurations of the two kinds of model; presets/ has named ones.

A configuration is a frozen dataclass: it is checked when it is made, written into checkpoints as
JSON, and typed on the command line. Sizes are (height, width); lists of levels go coarse to fine,
except `strides`, which read as an image is encoded: fine to coarse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vqvae2_fast.files.kinds import Kind, check_field, check_fields, integer, number, one_of
from vqvae2_fast.models.prior import PriorConfig
from vqvae2_fast.modules.level_quantizer import check_quantizer, codebook_numbers

__all__ = [
    "PixelSNAILConfig",
    "VQVAE2Config",
    "level_names",
]

Mask = Literal["exclude", "include", "down", "downright"]


def level_names(num_levels: int) -> tuple[str, ...]:
    """Names of the levels, coarse to fine: `top`, `middle` (or `middle1`, `middle2`), `bottom`."""
    if num_levels == 1:
        return ("top",)
    middles = num_levels - 2
    between = ("middle",) if middles == 1 else tuple(f"middle{i + 1}" for i in range(middles))
    return ("top", *between, "bottom")


_STRIDES = Kind(
    "1 to 4 powers of two >= 2, one for each level",
    lambda strides: (
        isinstance(strides, tuple | list)
        and 1 <= len(strides) <= 4
        and all(integer(2).fits(stride) and not stride & (stride - 1) for stride in strides)
    ),
)
_SIZE = Kind(
    "(height, width), each an integer >= 1",
    lambda size: (
        isinstance(size, tuple | list) and len(size) == 2 and all(map(integer(1).fits, size))
    ),
)


def _as_tuples(config: object, *names: str) -> None:
    """Keep lists, which callers may pass, as tuples: what a model is made from is a key."""
    for name in names:
        object.__setattr__(config, name, tuple(getattr(config, name)))


@dataclass(frozen=True)
class VQVAE2Config:
    """Stage 1: a hierarchical VQ-VAE (sections 3.1 and 3.2 of https://arxiv.org/abs/1906.00446).

    Args:
        image_size: Height and width of the images, each a multiple of the product of the strides.
        image_channels: 3 for RGB, 1 for grey.
        strides: Factor by which each encoder reduces the size, fine to coarse: a power of two for
            each of one to four levels.
        hidden_channels: Channels of the encoders and decoders ("hidden units").
        residual_channels: Channels inside a residual block ("residual units").
        num_residual_blocks: Residual blocks of each encoder and decoder.
        rectified_skip: Residual blocks add ReLU(x) instead of x to their result. The rosinality
            port did so until 2021-01-23, when its first ReLU still worked in place.
        num_embeddings: K, the number of codes of each level.
        embedding_dim: D, the dimension of a code.
        commitment_cost: Weight β of the commitment loss, eq. 3 of https://arxiv.org/abs/1711.00937.
        decay: Decay of the codebooks' moving averages, in [0, 1).
        epsilon: Laplace smoothing of the counts that the averages are divided by.
        init: How a codebook starts: k-means on the first batch, or random codes.
        ema_start: Counts that the moving averages start with: one, zero, or zero and debiased.
        restart: A code used less often than this share of the mean starts again from a vector of
            the latest batch; 0 leaves unused codes alone.
        gradient: How the gradient passes the quantiser: straight through, or by the rotation of
            https://arxiv.org/abs/2410.06424.
        seed: Seed of the codebooks' start and restarts.
        quantize_after: Optimiser steps before the codebooks start; until then nothing is quantised.
            Quantisers without moving averages begin at once.
        quantizer: The quantiser of all levels, or one for each level, coarse to fine; each gives K
            codes. "ema", "cosine", "gradient", "simvq", "lfq" and "bsq" take any K (the last two a
            power of two). The others name their parts, whose product is K: "fsq:8,8,8" (levels),
            "residual:16,32" (codes of each quantiser), "grouped:2:4,4" (groups, codes),
            "heads:2:16" (heads, codes), "residual-fsq:2:5,5" (quantisers, levels); a code is then
            the joint code of the parts. See docs/quantizers.md.
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
    rectified_skip: bool = False
    quantizer: tuple[str, ...] = ("ema",)

    def __post_init__(self) -> None:
        check_fields(self, strides=_STRIDES)
        check_fields(
            self,
            image_size=_SIZE,
            image_channels=integer(1),
            hidden_channels=integer(1),
            residual_channels=integer(1),
            num_residual_blocks=integer(0),
            num_embeddings=integer(1),
            embedding_dim=integer(1),
            commitment_cost=number(0),
            epsilon=number(0),
            quantize_after=integer(0),
        )
        _as_tuples(self, "strides", "image_size")
        total = math.prod(self.strides)
        if any(side % total for side in self.image_size):
            raise ValueError(
                f"expected image_size to be a multiple of {total} (strides {self.strides}) in both "
                f"directions, got {self.image_size}."
            )
        if isinstance(self.quantizer, str) or len(self.quantizer) not in (1, self.num_levels):
            raise ValueError(
                'expected quantizer to be a tuple of names, such as ("ema",): one for all, or '
                f"one for each of the {self.num_levels} levels, got {self.quantizer!r}."
            )
        _as_tuples(self, "quantizer")
        for quantizer in self.quantizer:
            check_quantizer(quantizer, self.num_embeddings, self.embedding_dim)

    @property
    def num_levels(self) -> int:
        return len(self.strides)

    @property
    def quantizers(self) -> tuple[str, ...]:
        """The quantiser of each level, coarse to fine."""
        return self.quantizer * (self.num_levels // len(self.quantizer))

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each code map, coarse to fine."""
        height, width = self.image_size
        sizes = []
        for stride in self.strides:
            height, width = height // stride, width // stride
            sizes.append((height, width))
        return tuple(reversed(sizes))

    def at_least(self) -> tuple[int, int]:
        """How many tensors and numbers the weights have at least; see `PriorConfig.at_least`."""
        tensors = self.num_residual_blocks + sum(stride.bit_length() for stride in self.strides)
        sizes = self.num_embeddings, self.embedding_dim
        return tensors, max(codebook_numbers(name, *sizes) for name in self.quantizers)


@dataclass(frozen=True)
class PixelSNAILConfig(PriorConfig):
    """Stage 2: an autoregressive prior over one level's code map (section 3.2 of the paper).

    Args:
        size: Height and width of the code map.
        num_embeddings: K, the number of codes of this level and of the maps that condition it.
        channels: Channels between layers ("hidden units").
        residual_channels: Channels inside a gated residual layer ("residual units").
        num_blocks: Blocks; each is `layers_per_block` gated residual layers and then attention
            (or, without attention, a 1×1 layer that sees the position).
        layers_per_block: Gated residual layers of a block, that is, between two attentions.
        kernel_size: Side of the causal convolutions, at least 2; odd unless mask is "downright".
        mask: Which taps of the current row a layer reads; see `ops.causal_conv2d`.
        attention: Whether blocks end in causal multi-head attention.
        num_heads: Attention heads; `channels // 2` must be a multiple of it.
        dropout: Probability of dropout after the first convolution of each residual layer.
        attention_dropout: Probability of dropout in the attention.
        attention_dropout_on: What it drops: the attention's logits, as in the paper, or its
            probabilities.
        num_output_layers: Residual 1×1 layers on top ("output stack layers").
        condition_sizes: Sizes of all coarser code maps, coarse to fine; empty for the top.
        condition_channels: Channels of the conditioning stack.
        num_condition_layers: Residual layers of the conditioning stack.
        condition_kernel_size: Side of the convolutions of the conditioning stack, odd.
        num_classes: Classes; 0 for an unconditional prior. Label `num_classes` is "no class".
        num_subclasses: Hidden parts of each class, see `PriorConfig`.
        num_variants: Kinds of changed images that have labels of their own, see `PriorConfig`.
        num_words: Words that the prior may be told beside a class, see `PriorConfig`.
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
    num_subclasses: int = 0
    num_variants: int = 0
    num_words: int = 0
    weight_norm: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            size=_SIZE,
            num_embeddings=integer(1),
            channels=integer(1),
            residual_channels=integer(1),
            num_blocks=integer(1),
            layers_per_block=integer(1),
            kernel_size=integer(2),
            mask=one_of(get_args(Mask)),
            dropout=number(0, below=1),
            attention_dropout=number(0, below=1),
            num_output_layers=integer(0),
            num_condition_layers=integer(0),
            num_classes=integer(0),
            num_subclasses=integer(0),
            num_variants=integer(0),
            num_words=integer(0),
        )
        _as_tuples(self, "size")
        if self.num_words and not self.num_classes:
            raise ValueError(
                f"expected num_words=0 without classes, got {self.num_words}: words are told "
                "beside a class."
            )
        if self.kernel_size % 2 == 0 and self.mask != "downright":
            raise ValueError(
                f"expected kernel_size to be odd for mask {self.mask!r}, got {self.kernel_size}."
            )
        if self.attention:
            check_fields(self, num_heads=integer(1))
            if self.channels < 2 or (self.channels // 2) % self.num_heads:
                raise ValueError(
                    "expected channels // 2 to be num_heads or a multiple of it, got "
                    f"channels={self.channels} and num_heads={self.num_heads}."
                )
        if self.condition_sizes:
            check_fields(self, condition_channels=integer(1), condition_kernel_size=integer(1))
        for size in self.condition_sizes:
            check_field("each of condition_sizes", size, _SIZE)
            height, width = size
            if self.size[0] % height or self.size[1] % width:
                raise ValueError(
                    f"expected size to be a multiple of each of condition_sizes, got {self.size} "
                    f"and {(height, width)}."
                )
        object.__setattr__(self, "condition_sizes", tuple(map(tuple, self.condition_sizes)))

    @property
    def num_layers(self) -> int:
        return self.num_blocks * self.layers_per_block

    def summary(self) -> str:
        return f"{self.num_layers} layers of {self.channels} channels"

    def at_least(self) -> tuple[int, int]:
        tensors = self.num_layers + self.num_output_layers
        tensors += self.num_condition_layers + len(self.condition_sizes)
        return tensors, max(self.kernel_size**2, 2 * math.prod(self.size), self.num_labels)
