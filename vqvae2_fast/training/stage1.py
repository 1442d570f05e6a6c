"""Stage 1: the VQ-VAE. Algorithm 1 of https://arxiv.org/abs/1906.00446."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqvae2_fast.data import in_order
from vqvae2_fast.metrics.codebook import CodebookUse, code_counts
from vqvae2_fast.metrics.reconstruction import psnr
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.adversary import Adversary, Fidelity
from vqvae2_fast.training.class_head import ClassHead, watching_top
from vqvae2_fast.training.classifier import check_classes
from vqvae2_fast.training.collapse import collapsed_levels
from vqvae2_fast.training.images import (
    check_images,
    identity_of_images,
    own_batches,
    validation_set,
)
from vqvae2_fast.training.stage import Stage

if TYPE_CHECKING:
    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.metrics import LPIPS
    from vqvae2_fast.ops._batch_part import BatchPart
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["vqvae_stage"]

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
