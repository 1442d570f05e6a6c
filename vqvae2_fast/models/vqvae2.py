"""The hierarchical VQ-VAE: section 3.1 of https://arxiv.org/abs/1906.00446, for 1 to 4 levels.

Sizes: B images of C channels and H×W pixels, L levels, K codes, D embedding_dim. Level 0 is the
coarsest (`top`); lists of levels go coarse to fine.

With two levels and strides (4, 2) the layers and their wiring are those of rosinality's port. The
paper does not say how more than two levels are wired. Here each level is quantised with the decoded
context of all coarser ones, and passes on that context, upsampled and joined with its own codes.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.console.tables import html_summary
from vqvae2_fast.models.code_checks import check_levels
from vqvae2_fast.models.configs import VQVAE2Config, level_names
from vqvae2_fast.modules.encoder_decoder import Decoder, Encoder, PlainConv2d, upsampler
from vqvae2_fast.modules.level_quantizer import make_quantizer
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA, update_codebooks_
from vqvae2_fast.modules.quantizer_interface import in_words
from vqvae2_fast.ops._checks import dtype_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vqvae2_fast.modules.quantizer_interface import Quantizer
    from vqvae2_fast.ops._batch_part import BatchPart

__all__ = ["VQVAE2", "VQVAE2Output"]


@dataclass
class VQVAE2Output:
    """What a forward returns, a pytree of tensors; lists go coarse to fine.

    Args:
        reconstruction: `[B, C, H, W]`, not clamped.
        codes: int64, `[B, h, w]` for each level.
        losses: float32, 0-d, differentiable: the quantiser's loss of each level by the level's name
            (of "ema" commitment_cost × commitment), and their sum as "commitment".
        perplexity: float32, 0-d, for each level: that of this process's batch.
    """

    reconstruction: Tensor
    codes: list[Tensor]
    losses: dict[str, Tensor]
    perplexity: list[Tensor]

    @property
    def commitment(self) -> Tensor:
        return self.losses["commitment"]


torch.export.register_dataclass(VQVAE2Output, serialized_type_name="vqvae2_fast.VQVAE2Output")

# After this many optimiser steps without a codebook update, the update was probably forgotten.
_FORGOTTEN_STEPS = 10


class VQVAE2(nn.Module):
    """Images to code maps and back.

    An optimiser step of training takes one or more forwards with their backwards, and then one call
    of `update_codebooks_`. Images may differ in size from `config.image_size`.

    `vqvae_hash` is "", unless only the decoder was trained further: then it is the `weights_hash`
    of the VQ-VAE before, whose codes and priors stay valid. Checkpoints keep it.

    Args:
        config: Sizes, and rules of the codebooks.
    """

    vqvae_hash: str = ""

    def __init__(self, config: VQVAE2Config) -> None:
        super().__init__()
        if not isinstance(config, VQVAE2Config):
            raise TypeError(
                'expected a VQVAE2Config, such as `preset("emoji32").vqvae`, got '
                f"{type(config).__name__}."
            )
        self.config = config
        self.level_names = level_names(config.num_levels)
        hidden, dim, levels = config.hidden_channels, config.embedding_dim, config.num_levels
        residual = (
            config.num_residual_blocks,
            config.residual_channels,
            config.rectified_skip,
        )
        # Fine to coarse: encoder i halves what encoder i − 1 gives.
        inputs = [config.image_channels] + [hidden] * (levels - 1)
        self.encoders = nn.ModuleList(
            Encoder(channels, hidden, stride, *residual)
            for channels, stride in zip(inputs, config.strides, strict=True)
        )
        # Coarse to fine, as everything below; factors[l] leads from level l to level l + 1.
        factors = config.strides[:0:-1]
        self.conditioners = nn.ModuleList(
            Decoder((level + 1) * dim, dim, hidden, factor, *residual)
            for level, factor in enumerate(factors)
        )
        self.upsamplers = nn.ModuleList(
            upsampler((level + 1) * dim, factor) for level, factor in enumerate(factors)
        )
        self.pre_quantize = nn.ModuleList(
            PlainConv2d(hidden + (dim if level else 0), dim, 1) for level in range(levels)
        )
        self.quantizers = nn.ModuleList(
            make_quantizer(
                config.quantizers[level],
                config.num_embeddings,
                dim,
                commitment_cost=config.commitment_cost,
                decay=config.decay,
                epsilon=config.epsilon,
                init=config.init,
                ema_start=config.ema_start,
                restart=config.restart,
                gradient=config.gradient,
                update="step",
                quantize_after=config.quantize_after,
                seed=config.seed,
                stream=level,
            )
            for level in range(levels)
        )
        self.decoder = Decoder(
            levels * dim, config.image_channels, hidden, config.strides[0], *residual
        )
        # Until the first update: how often the weights were seen to have changed in training, their
        # version at that time, and the codebooks' steps when this was first looked at.
        self._watches_updates = True
        self._weights_changes, self._weights_version = 0, -1
        self._first_steps: list[Tensor] = []

    def forward(self, images: Tensor) -> VQVAE2Output:
        """Reconstruct images; in training mode their codes enter the codebooks' statistics.

        Args:
            images: `[B, C, H, W]`, floating, in [−1, 1]; H and W are multiples of the product of
                the strides.

        Raises:
            ValueError: Wrong channels or dimensions, or a size that the strides do not divide.
            TypeError: Images that are not floating.
        """
        self._notice_forgotten_updates()
        features = self._encode_features(images)
        context: Tensor | None = None
        codes, losses, perplexity = [], {}, []
        for level, quantizer in enumerate(self._levels()):
            z = self._vectors(level, features[level], context)
            z_q, indices, loss = quantizer(z)
            context = self._extended(level, context, z_q)
            codes.append(indices)
            losses[self.level_names[level]] = loss
            perplexity.append(quantizer.perplexity)
        losses["commitment"] = torch.stack(list(losses.values())).sum()
        return VQVAE2Output(self.decoder(context), codes, losses, perplexity)

    def _repr_html_(self) -> str:
        """What a notebook shows: the maps of an image, and how evenly training used the codes."""
        config, rows = self.config, []
        for level, quantizer in enumerate(self._levels()):
            height, width = config.level_sizes[level]
            rows.append(
                [
                    self.level_names[level],
                    f"{height}×{width}",
                    config.quantizers[level],
                    f"{config.num_embeddings:,}",
                    in_words(quantizer.perplexity_in_training()),
                ]
            )
        height, width = config.image_size
        lead = (
            f"images of {height}×{width}, channels: {config.image_channels}, parameters: "
            f"{sum(weight.numel() for weight in self.parameters()):,}"
        )
        header = ("level", "map", "quantiser", "codes", "perplexity in training")
        return html_summary(lead, header, rows)

    def segments(self) -> list[nn.Module]:
        """Modules that training can recompute and compile one by one: all but the quantisers."""
        return [*self.encoders, *self.conditioners, *self.upsamplers, self.decoder]

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """Code maps of images `[B, C, H, W]`: int64 `[B, h, w]`, coarse to fine.

        Raises:
            ValueError, TypeError: As `forward`.
        """
        features = self._encode_features(images)
        context: Tensor | None = None
        codes = []
        for level, quantizer in enumerate(self._levels()):
            z = self._vectors(level, features[level], context)
            indices = quantizer.encode(z)
            codes.append(indices)
            if level + 1 < len(features):
                context = self._extended(level, context, quantizer.lookup(indices).to(z.dtype))
        return codes

    def decode(self, codes: list[Tensor]) -> Tensor:
        """Images `[B, C, H, W]`, not clamped, from code maps int64 `[B, h, w]`, coarse to fine.

        Checking the range of the codes synchronises a GPU with its host; `torch.compile` and
        transforms of `torch.func` leave the check out.

        Raises:
            ValueError: The wrong number of maps, a size that does not follow from that of the
                coarsest map, or a code outside 0..K−1.
            TypeError: Codes that are not int64.
        """
        check_levels(codes, self.level_names, self.config.strides, self.config.num_embeddings)
        context: Tensor | None = None
        dtype = next(self.decoder.parameters()).dtype
        for level, quantizer in enumerate(self._levels()):
            context = self._extended(level, context, quantizer.lookup(codes[level]).to(dtype))
        return self.decoder(context)

    @torch.no_grad()
    def decode_partly(self, codes: list[Tensor]) -> Tensor:
        """What is known of images, as `decode`, from maps in which -1 stands for an unknown code.

        In its place stands the mean of the level's codes.
        """
        context: Tensor | None = None
        dtype = next(self.decoder.parameters()).dtype
        for level, quantizer in enumerate(self._levels()):
            every = quantizer.lookup(
                torch.arange(self.config.num_embeddings, device=codes[0].device)
            )
            known = codes[level] >= 0
            vectors = quantizer.lookup(codes[level].clamp(min=0))
            vectors = torch.where(known[..., None], vectors, every.mean(0))
            context = self._extended(level, context, vectors.to(dtype))
        return self.decoder(context)

    @staticmethod
    def loss(images: Tensor, output: VQVAE2Output) -> Tensor:
        """Mean squared error plus the commitment of all levels, float32 0-d.

        It needs no model, so it serves the output of a wrapper's forward as well.
        """
        # Of each channel first: PyTorch adds all values of a batch in an order that depends on the
        # number of threads.
        squares = F.mse_loss(output.reconstruction.float(), images.float(), reduction="none")
        return squares.mean((2, 3)).mean() + output.commitment

    def update_codebooks_(self) -> None:
        """Move all codebooks by the statistics since the last call: once per optimiser step.

        Call it after backward, which needs the codes of the forward.
        """
        self._watches_updates = False
        update_codebooks_(self._averaged_codebooks())

    @torch.no_grad()
    def start_codebooks_(self, batches: Sequence[Tensor], parts: Sequence[BatchPart]) -> None:
        """Start codebooks by k-means from all micro-batches of a step, before its first forward.

        Without it they start from the first micro-batch, of all processes. All of them call it.
        This does nothing where no codebook is about to start.

        Args:
            batches: This process's images of each micro-batch, `[B, C, H, W]`.
            parts: Where they stand in the batch of the step.
        """
        for level, quantizer in enumerate(self._levels()):
            if quantizer.must_start():
                vectors = [self._vectors_of(images, level) for images in batches]
                quantizer.start_(vectors, list(parts))

    def _vectors_of(self, images: Tensor, level: int) -> Tensor:
        """What a level quantises, `[B, h, w, D]`, all coarser ones quantised."""
        features = self._encode_features(images)
        context: Tensor | None = None
        for coarser, quantizer in zip(range(level), self._levels(), strict=False):
            z = self._vectors(coarser, features[coarser], context)
            z_q = quantizer.lookup(quantizer.encode(z)).to(z.dtype)
            context = self._extended(coarser, context, z_q)
        return self._vectors(level, features[level], context)

    def _levels(self) -> Iterable[Quantizer]:
        """The quantisers by their type, coarse to fine."""
        return cast("Iterable[Quantizer]", self.quantizers)

    def _averaged_codebooks(self) -> list[VectorQuantizerEMA]:
        """The codebooks that follow their vectors by moving averages, of all levels."""
        return [part for part in self.quantizers.modules() if isinstance(part, VectorQuantizerEMA)]

    def _notice_forgotten_updates(self) -> None:
        """Warn once if the weights took ten optimiser steps while no codebook was updated."""
        if torch.compiler.is_compiling() or not self._watches_updates:
            return
        codebooks = self._averaged_codebooks()
        if not torch.is_grad_enabled() or not any(codebook.training for codebook in codebooks):
            return
        # An optimiser writes the weights in place, which their version counters show.
        version = sum(weight._version for weight in self.parameters())
        if version == self._weights_version:
            return
        self._weights_version = version
        if not self._first_steps:
            self._first_steps = [codebook.steps.clone() for codebook in codebooks]
            return
        self._weights_changes += 1
        if self._weights_changes < _FORGOTTEN_STEPS:
            return
        self._watches_updates = False
        # Here the host waits for a GPU, once. Codebooks can also be updated one by one.
        steps = [codebook.steps for codebook in codebooks]
        if not torch.equal(torch.stack(steps), torch.stack(self._first_steps)):
            return
        warnings.warn(
            f"{_FORGOTTEN_STEPS} optimiser steps went by without update_codebooks_(), so "
            "the codebooks do not follow the encoder. Call model.update_codebooks_() once per "
            "optimiser step, after backward. To keep the codebooks as they are on purpose, call "
            "model.quantizers.eval().",
            stacklevel=3,
        )

    def _encode_features(self, images: Tensor) -> list[Tensor]:
        """`[B, hidden, h, w]` for each level, coarse to fine."""
        self._check_images(images)
        features = []
        x = images
        for encoder in self.encoders:
            x = encoder(x)
            features.append(x)
        return features[::-1]

    def _vectors(self, level: int, features: Tensor, context: Tensor | None) -> Tensor:
        """What the level quantises, from its features and the context of coarser levels."""
        if context is not None:
            features = torch.cat([self.conditioners[level - 1](context), features], dim=1)
        # A channels_last map is already in this order: no copy.
        return self.pre_quantize[level](features).permute(0, 2, 3, 1)  # [B, h, w, D]

    def _extended(self, level: int, context: Tensor | None, z_q: Tensor) -> Tensor:
        """The context with a level's quantised vectors `[B, h, w, D]`: `[B, (level+1)·D, h, w]`."""
        z_q = z_q.permute(0, 3, 1, 2)  # [B, D, h, w]
        if context is None:
            return z_q
        return torch.cat([self.upsamplers[level - 1](context), z_q], dim=1)

    def _check_images(self, images: Tensor) -> None:
        channels, stride = self.config.image_channels, math.prod(self.config.strides)
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"expected images [B, C, H, W] with C={channels}, got {list(images.shape)}."
            )
        if not images.is_floating_point():
            raise TypeError(
                "expected floating images in [-1, 1], got "
                f"{dtype_name(images.dtype)}: use images / 127.5 - 1 for bytes."
            )
        if any(side < stride or side % stride for side in images.shape[2:]):
            raise ValueError(
                f"expected images with H and W multiples of {stride} (strides "
                f"{self.config.strides}), got {list(images.shape)}: crop or resize them."
            )
