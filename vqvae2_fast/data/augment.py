"""Augmentations whose randomness is a function of (seed, epoch, image): a resumed run repeats them.

The words come from the counter-based generator that also makes the noise of draws, with a separate
purpose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.data.images import stable_hash
from vqvae2_fast.files.kinds import check_field, integer
from vqvae2_fast.ops.gumbel_noise.op import PURPOSE_AUGMENT, random_words

__all__ = ["augment", "crop_offsets", "flips", "recoloured", "zoomed"]

_FLIP, _ROW, _COLUMN, _COLOUR, _ZOOM = 0, 1, 2, 3, 6  # words of an image; 3 to 5 are colours


def flips(indices: Tensor, *, seed: int, epoch: int | Tensor) -> Tensor:
    """Whether each image is mirrored in this epoch, with probability 1/2: bool `[B]`.

    Args:
        indices: Numbers of the images in their set, int64 `[B]`.
        epoch: The epoch of all images, or of each one, int64 `[B]`.
    """
    return _words(indices, seed, epoch, _FLIP) >= 2**31


def crop_offsets(indices: Tensor, padding: int, *, seed: int, epoch: int | Tensor) -> Tensor:
    """(down, right) shift of each image's window, uniform in [-padding, padding]: int64 `[B, 2]`.

    Raises:
        ValueError: padding is negative.
    """
    check_field("padding", padding, integer(0))
    words = [_words(indices, seed, epoch, which) for which in (_ROW, _COLUMN)]
    return (torch.stack(words, dim=1) * (2 * padding + 1) >> 32) - padding  # [B, 2]


def augment(
    images: Tensor,
    indices: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    flip: bool = False,
    crop_padding: int = 0,
) -> Tensor:
    """The images, each cropped at random after padding, and mirrored at random.

    Padding repeats the pixels of the border, so that a picture on white stays on white.

    Args:
        images: `[B, C, H, W]`, any type and device.
        indices: Numbers of the images in their set, int64 `[B]`.
        epoch: As in `flips`.
        flip: Mirror left to right with probability 1/2.
        crop_padding: Pixels on each side before the crop.

    Raises:
        ValueError: crop_padding is negative.
    """
    if crop_padding:
        offsets = crop_offsets(indices, crop_padding, seed=seed, epoch=epoch)
        images = _shifted(images, offsets.to(images.device))
    if flip:
        mirrored = flips(indices, seed=seed, epoch=epoch).to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    return images


def recoloured(
    images: Tensor, indices: Tensor, strength: float, *, seed: int, epoch: int
) -> Tensor:
    """The images with other colours: each channel v in [0, 1] becomes v^g, where log g is uniform
    in [-strength, strength]. Black and white stay as they are.

    Args:
        images: `[B, C, H, W]`, C at most 3, floating, in [-1, 1].
    """
    words = [_words(indices, seed, epoch, _COLOUR + c) for c in range(images.shape[1])]
    exponents = _factors(torch.stack(words, 1), strength).to(images.device)  # [B, C]
    return ((images + 1) / 2).clamp(0, 1).pow(exponents[:, :, None, None]) * 2 - 1


def zoomed(images: Tensor, indices: Tensor, strength: float, *, seed: int, epoch: int) -> Tensor:
    """The images enlarged or reduced about their centre by a factor whose logarithm is uniform in
    [-strength, strength] (bicubic; what comes from outside repeats the border).

    Args:
        images: `[B, C, H, W]`, floating, in [-1, 1].
    """
    factors = _factors(_words(indices, seed, epoch, _ZOOM), strength).to(images)  # [B]
    matrices = torch.zeros(len(images), 2, 3, device=images.device, dtype=images.dtype)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / factors
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    sampled = F.grid_sample(images, grid, "bicubic", padding_mode="border", align_corners=False)
    return sampled.clamp(-1, 1)


def _factors(words: Tensor, strength: float) -> Tensor:
    """A factor for each 32-bit word, between exp(-strength) and exp(strength)."""
    return ((words.double() / 2**31 - 1) * strength).exp().float()


def _shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Each image moved by its offset `[B, 2]`; pixels from outside repeat the border."""
    _, _, height, width = images.shape
    device = images.device
    rows = (torch.arange(height, device=device) + offsets[:, :1]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width, device=device) + offsets[:, 1:]).clamp(0, width - 1)  # [B, W]
    rows = rows[:, None, :, None].expand(-1, images.shape[1], -1, width)
    columns = columns[:, None, None, :].expand(-1, images.shape[1], height, -1)
    return images.gather(2, rows).gather(3, columns)  # [B, C, H, W]


def _words(indices: Tensor, seed: int, epoch: int | Tensor, which: int) -> Tensor:
    """One 32-bit word for each image, in int64 `[B]`."""
    return random_words(
        torch.tensor(which, dtype=torch.int64, device="cpu"),
        torch.as_tensor(epoch, dtype=torch.int64, device="cpu"),
        indices.to("cpu"),
        seed=stable_hash(f"augment/{seed}"),
        stream=0,
        purpose=PURPOSE_AUGMENT,
    )
