"""Stage 1: the VQ-VAE. Algorithm 1 of https://arxiv.org/abs/1906.00446."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.data import batches, in_order
from vqvae2_fast.metrics import codebook_use, reconstruction_error
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.training.loop import Stage

if TYPE_CHECKING:
    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.metrics import LPIPS
    from vqvae2_fast.models.vqvae2 import VQVAE2
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["vqvae_stage"]


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
) -> Stage:
    """Mean squared error of the reconstruction plus the commitment losses of all levels.

    Validation gives `mse` (pixels in [-1, 1]), `psnr` in dB, and the codes of each level in use,
    on the held-out images.

    Args:
        flip: Mirror half of the training images left to right.
        crop_padding: Shift training images at random by up to so many pixels; see `batches`.
        perceptual, perceptual_weight: LPIPS and its weight in the loss (not in the paper): sharper
            images of a lower PSNR.

    Raises:
        ValueError: Images of another size or channels than the model's; or a weight below 0, or
            above it without LPIPS.
    """
    if perceptual_weight < 0 or (perceptual_weight and perceptual is None):
        raise ValueError(
            "vqvae_stage: expected perceptual_weight >= 0, and LPIPS with one above, got "
            f"{perceptual_weight} and {perceptual and 'LPIPS'}."
        )
    check_images("vqvae_stage", model, train_set, "train_set")
    check_images("vqvae_stage", model, held_out, "held_out")
    device = device_of(model)
    # Measured on Zen 4, one thread, batch 32 of emoji32: 225 ms a step instead of 253 in float32,
    # 77 instead of 161 in bfloat16.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch[0].to(device, memory_format=torch.channels_last)
        output = model(images)
        total = model.loss(images, output)
        commitment = output.losses["commitment"].detach()
        parts = {"reconstruction": total.detach() - commitment, "commitment": commitment}
        if perceptual is not None and perceptual_weight:
            distance = perceptual(output.reconstruction.float(), images).mean()
            total = total + perceptual_weight * distance
            parts["lpips"] = distance.detach()
        return total, parts

    def validate(model: VQVAE2) -> dict[str, float]:
        images = [images for images, _ in in_order(held_out, 4 * config.batch_size)]
        error = reconstruction_error(model, images)
        metrics = {"mse": error.mse, "psnr": error.psnr}
        with torch.no_grad():
            codes = [model.encode(batch.to(device)) for batch in images]
        for level, name in enumerate(level_names(model.config.num_levels)):
            used = codebook_use(
                torch.cat([maps[level] for maps in codes]), model.config.num_embeddings
            )
            metrics[f"{name}_codes_used"] = float(used.used)
        return metrics

    return Stage(
        name="train VQ-VAE",
        model=model,
        batches=lambda first: batches(
            train_set,
            config.batch_size,
            seed=config.seed,
            start_step=first,
            flip=flip,
            crop_padding=crop_padding,
            num_workers=config.workers,
        ),
        loss=loss,
        validate=validate,
        headline="psnr",
        after_step=model.update_codebooks_,
    )


def check_images(op: str, model: VQVAE2, dataset: ImageSource, argument: str) -> None:
    """Raises ValueError unless the images of a set have the size and channels of the model."""
    expected = (model.config.image_channels, *model.config.image_size)
    if dataset.image_shape != expected:
        raise ValueError(
            f"{op}: expected images of {argument} to be [C, H, W] = {list(expected)} as in "
            f"the model's configuration, got {list(dataset.image_shape)}."
        )
