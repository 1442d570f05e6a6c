"""The decoder of a trained VQ-VAE alone, for sharper images from the same codes.

Encoder, codebooks and all layers between the levels stay as they are, so codes and priors stay
valid. Not in the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from vqvae2_fast.data import in_order
from vqvae2_fast.metrics.reconstruction import reconstruction_error, reconstruction_measures
from vqvae2_fast.models.weights_hash import codes_hash, weights_hash
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.images import (
    check_images,
    identity_of_images,
    own_batches,
    validation_set,
)
from vqvae2_fast.training.loop import DivergedError
from vqvae2_fast.training.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.models.vqvae2 import VQVAE2
    from vqvae2_fast.training.adversary import Fidelity
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["decoder_stage", "freeze_all_but_decoder"]


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
