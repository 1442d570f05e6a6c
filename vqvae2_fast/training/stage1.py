"""Stage 1: the VQ-VAE, Algorithm 1 of https://arxiv.org/abs/1906.00446, and its decoder alone.

`decoder_stage` trains the decoder of a trained VQ-VAE for sharper images from the same codes:
encoder, codebooks and all layers between the levels stay as they are, so codes and priors stay
valid. That is not in the paper.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.data import in_order
from vqvae2_fast.metrics.codes import CodebookUse, code_counts
from vqvae2_fast.metrics.reconstruction import psnr, reconstruction_error, reconstruction_measures
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.models.weights_hash import codes_hash, weights_hash
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.modules.level_quantizer import learns_by_averages
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.companions import Adversary, ClassHead, Fidelity, watching_top
from vqvae2_fast.training.images import (
    check_classes,
    check_images,
    identity_of_images,
    own_batches,
    validation_set,
)
from vqvae2_fast.training.loop import DivergedError
from vqvae2_fast.training.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.metrics import LPIPS
    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.ops._batch_part import BatchPart
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["collapsed_levels", "decoder_stage", "freeze_all_but_decoder", "vqvae_stage"]


_SETTLING = 50  # updates of the codebooks before the use of their codes is judged


def vqvae_stage(
    model: VQVAE2,
    train_set: ImageSource,
    held_out: ImageSource,
    config: TrainConfig,
    *,
    flip: bool = False,
    crop_padding: int = 0,
    perceptual: LPIPS | None = None,
    perceptual_weight: float = 0.0,
    adversary: Adversary | None = None,
    class_head: ClassHead | None = None,
) -> Stage:
    """Mean squared error of the reconstruction plus the commitment losses of all levels.

    Validation gives `mse` (pixels in [-1, 1]), `psnr` in dB, and how many codes of each level the
    held-out images use, with their perplexity. A level that collapses is warned of once.

    Args:
        flip: Mirror half of the training images left to right.
        crop_padding: Pixels that training images are shifted by at most, at random; see `batches`.
        perceptual, perceptual_weight, adversary: See `Fidelity`; not in the paper.
        class_head: See `ClassHead`; not in the paper.

    Raises:
        ValueError: Images whose size or channels are not the model's; a negative weight, or a
            positive one without LPIPS; a class head for images without classes; a discriminator
            and a class head.
    """
    if adversary is not None and class_head is not None:
        raise ValueError(
            "expected a discriminator or a class head, got both: "
            f"adversary.weight={adversary.settings.weight} and "
            f"class_head.weight={class_head.settings.weight}. Train with the class head, and then "
            "the decoder alone against a discriminator (finetune-decoder)."
        )
    fidelity = Fidelity(perceptual, perceptual_weight, adversary)
    companion = adversary or class_head
    model.vqvae_hash = ""  # its codes become its own
    check_images(model, train_set, "train_set")
    check_images(model, held_out, "held_out")
    if class_head is not None:
        check_classes(train_set)
    # Measured on one thread of Zen 4 with batches of 32 from emoji32: 225 ms per step instead of
    # 253 in float32, and 77 instead of 161 in bfloat16.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        device = device_of(model)
        images = batch[0].to(device, memory_format=torch.channels_last)
        if class_head is None:
            output, tops = model(images), []
        else:
            with watching_top(model) as tops:
                output = model(images)
        total = VQVAE2.loss(images, output)
        commitment = output.losses["commitment"].detach()
        parts = {"reconstruction": total.detach() - commitment, "commitment": commitment}
        total, more = fidelity.added_to(total, images, output.reconstruction, model)
        if class_head is not None:
            added, read = class_head.loss(tops[0], batch[1])
            total, more = total + added, more | read
        return total, parts | more

    def after_step(model: VQVAE2) -> None:
        model.update_codebooks_()
        if companion is not None:
            companion.step()

    def before_step(
        model: VQVAE2, micro_batches: list[tuple[Tensor, Tensor]], parts: list[BatchPart]
    ) -> None:
        device = device_of(model)
        model.start_codebooks_([images.to(device) for images, _ in micro_batches], parts)

    validation = validation_set(held_out, config)

    alarmed: set[str] = set()

    def validate(model: VQVAE2) -> dict[str, float]:
        metrics = _held_out_metrics(model, validation, 4 * config.batch_size)
        # Quantisers without moving averages count no steps: theirs are judged from the start.
        averages = [m for m in model.quantizers.modules() if isinstance(m, VectorQuantizerEMA)]
        settled = all(
            int(part.steps) - model.config.quantize_after > _SETTLING for part in averages
        )
        if settled and Ranks.of_group().rank == 0:
            count = len(validation)
            for level, text in collapsed_levels(model.config, metrics, count).items():
                if level not in alarmed:
                    warnings.warn(text, stacklevel=2)
                alarmed.add(level)
        return metrics

    return Stage(
        name="train VQ-VAE",
        model=model,
        batches=own_batches(train_set, config, flip=flip, crop_padding=crop_padding),
        loss=loss,
        validate=validate,
        headline="psnr",
        before_step=before_step,
        after_step=after_step,
        companion=companion,
        identity=lambda: {
            **identity_of_images(train_set, held_out, flip=flip),
            "crop_padding": crop_padding,
            **fidelity.identity(),
            **({"class_head": asdict(class_head.settings)} if class_head else {}),
        },
    )


@torch.no_grad()
def _held_out_metrics(model: VQVAE2, images: ImageSource, batch_size: int) -> dict[str, float]:
    """The error of the reconstructions and the codes in use, in one pass, batch by batch.

    The processes of a group share the batches.
    """
    config, device, ranks = model.config, device_of(model), Ranks.of_group()
    total = torch.zeros((), dtype=torch.float64, device=device)
    counts = torch.zeros(config.num_levels, config.num_embeddings, dtype=torch.int64, device="cpu")
    own = in_order(images, batch_size, rank=ranks.rank, world_size=ranks.count)
    for batch, _ in own:
        batch = batch.to(device)
        codes = model.encode(batch)
        difference = model.decode(codes).clamp(-1, 1) - batch
        total += difference.square().sum(dtype=torch.float64)
        for seen, level in zip(counts, codes, strict=True):
            seen += code_counts(level, config.num_embeddings)
    ranks.sum_(counts)
    mse = float(ranks.sum_(total)) / (len(images) * math.prod(images.image_shape))
    metrics = {"mse": mse, "psnr": psnr(mse / 4)}  # [-1, 1] is twice as wide as [0, 1]
    for name, seen in zip(level_names(config.num_levels), counts, strict=True):
        use = CodebookUse.of_counts(seen)
        metrics[f"{name}_codes_used"] = float(use.used)
        metrics[f"{name}_perplexity"] = use.perplexity
    return metrics


def freeze_all_but_decoder(model: VQVAE2) -> None:
    """Let gradients reach the weights of the decoder only."""
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)


def decoder_stage(
    model: VQVAE2,
    train_set: ImageSource,
    held_out: ImageSource,
    config: TrainConfig,
    fidelity: Fidelity,
    *,
    flip: bool = False,
    most_lost: float = 3.0,
) -> Stage:
    """Squared error and what `fidelity` adds, for the decoder of a trained VQ-VAE.

    Validation gives `mse`, `mse_unit`, `psnr` in dB, `ssim`, and `lpips` if fidelity has it; the
    best checkpoint is that of the lowest LPIPS, or else of the highest PSNR.

    Args:
        model: The trained VQ-VAE: everything but its decoder is frozen, and `vqvae_hash` is set.
        flip: Mirror half of the training images left to right.
        most_lost: How many dB of PSNR the held-out images may lose before the training stops with
            a DivergedError.

    Raises:
        ValueError: Images whose size or channels are not the model's.
        NotImplementedError: In a group of several processes.
    """
    if Ranks.of_group().count > 1:
        raise NotImplementedError(
            "expected one process, since it trains a part of the model that is not "
            f"its forward pass, got {Ranks.of_group().count}; leave torchrun out."
        )
    check_images(model, train_set, "train_set")
    check_images(model, held_out, "held_out")
    before = weights_hash(model)
    model.vqvae_hash = codes_hash(model)
    freeze_all_but_decoder(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    validation = validation_set(held_out, config)

    def loss(model: VQVAE2, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch[0].to(device_of(model), memory_format=torch.channels_last)
        reconstruction = model.decode(model.encode(images))
        squares = F.mse_loss(reconstruction.float(), images)
        total, parts = fidelity.added_to(squares, images, reconstruction, model)
        return total, {"reconstruction": squares.detach(), **parts}

    def held_out_batches() -> Iterator[Tensor]:
        return (images for images, _ in in_order(validation, 4 * config.batch_size))

    least = reconstruction_error(model.eval(), held_out_batches()).psnr - most_lost

    def validate(model: VQVAE2) -> dict[str, float]:
        found = reconstruction_measures(model, held_out_batches(), fidelity.perceptual)
        if found.psnr < least:
            raise DivergedError(
                f"fine-tune decoder: the held-out images lost more than {most_lost:g} dB (PSNR "
                f"{found.psnr:.2f}): the reconstructions have collapsed. Lower the weight of "
                "the discriminator or of LPIPS, or the learning rate."
            )
        return {name: value for name, value in vars(found).items() if value is not None}

    def after_step(model: VQVAE2) -> None:
        if fidelity.adversary is not None:
            fidelity.adversary.step()

    return Stage(
        name="fine-tune decoder",
        model=model,
        batches=own_batches(train_set, config, flip=flip),
        loss=loss,
        validate=validate,
        headline="psnr" if fidelity.perceptual is None else "lpips",
        lower_is_better=fidelity.perceptual is not None,
        after_step=after_step,
        companion=fidelity.adversary,
        identity=lambda: {
            "vqvae": before,
            **identity_of_images(train_set, held_out, flip=flip),
            **fidelity.identity(),
        },
    )


# Shares of the codes that could be used. docs/reports has levels on both sides of them: a top level
# that is lost uses 1 to 19 of 512 codes, one that lives more than 400 with a perplexity above 200.
_FEW, _UNEVEN = 0.1, 0.05


def collapsed_levels(
    config: VQVAE2Config, metrics: Mapping[str, float], images: int
) -> dict[str, str]:
    """What is wrong with each level that has collapsed, and what to do, by the level's name.

    Args:
        metrics: LEVEL_codes_used and LEVEL_perplexity (2 to the entropy of the codes in bits) of
            held-out images.
        images: How many there were.
    """
    found = {}
    levels = zip(level_names(config.num_levels), config.level_sizes, config.quantizers, strict=True)
    for name, (height, width), quantizer in levels:
        used, perplexity = int(metrics[f"{name}_codes_used"]), metrics[f"{name}_perplexity"]
        possible = min(config.num_embeddings, images * height * width)
        if used >= _FEW * possible and perplexity >= _UNEVEN * possible:
            continue
        what = f"use only {used} of the {config.num_embeddings} codes of level {name}"
        if used == 1:
            what += ", which therefore says nothing"
        elif used >= _FEW * possible:
            what = (
                f"use the {config.num_embeddings} codes of level {name} so unevenly that their "
                f"perplexity is only {perplexity:.1f}"
            )
        if learns_by_averages(quantizer):
            remedy = (
                f"Raise restart={config.restart:g}, which gives unused codes another chance, or "
                f"quantize_after={config.quantize_after}, or lower "
            )
        else:
            remedy = f"Replace quantizer={quantizer}, or lower "
        found[name] = (
            f"the held-out images {what}: its codebook has collapsed. {remedy}learning_rate."
        )
    return found
