"""What codes look like: a colour for each, and the patch of an image that each decodes to.

Sizes: K codes, D embedding_dim.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.modules.contexts import device_of

if TYPE_CHECKING:
    from vqvae2_fast.models.vqvae2 import VQVAE2
    from vqvae2_fast.modules.quantizer_interface import Quantizer

__all__ = ["code_colours", "code_patches", "code_shares", "codes_of", "level_colours"]

_AT_ONCE = 64  # codes that are decoded together


@torch.no_grad()
def codes_of(quantizer: Quantizer, num_embeddings: int) -> Tensor:
    """The vectors of all codes, float32 `[K, D]`."""
    own = next(chain(quantizer.parameters(), quantizer.buffers()), None)  # a grid may have none
    every = torch.arange(num_embeddings, device=None if own is None else own.device)
    return quantizer.lookup(every).float()


def code_shares(quantizer: Quantizer) -> Tensor | None:
    """The share of each code in training, float32 `[K]`; None if the quantiser keeps no counts."""
    counts: Tensor | None = getattr(quantizer, "cluster_size", None)
    if counts is None:
        return None
    total = counts.sum()
    return torch.where(total > 0, counts / total, 1 / len(counts))


def code_colours(
    codebook: Tensor, shares: Tensor | None = None, brightness: Tensor | None = None
) -> Tensor:
    """A colour for each code, such that similar codes look alike: uint8 `[K, 3]`, RGB.

    The first three principal coordinates of the codes are lightness and two opponent colours.

    Args:
        codebook: float32 `[K, D]`.
        shares: float32 `[K]`: how much each code weighs; by default all weigh the same.
        brightness: `[K]`: bright codes get bright colours. Without it the codes that lie furthest
            from the others do.
    """
    count = len(codebook)
    shares = codebook.new_full((count,), 1 / count) if shares is None else shares.to(codebook)
    centred = codebook - (codebook * shares[:, None]).sum(0)
    _, _, axes = torch.linalg.svd(centred * shares.sqrt()[:, None], full_matrices=False)
    places = centred @ axes[:3].T  # [K, 3]
    if places.shape[1] < 3:
        places = F.pad(places, (0, 3 - places.shape[1]))
    # The signs of the other axes are arbitrary but fixed.
    first = places[:, 0]
    bright = first**2 if brightness is None else brightness.to(places) - brightness.mean()
    if (first * bright).sum() < 0:
        places[:, 0] = -first
    ranks = places.argsort(0).argsort(0).float() / max(1, len(places) - 1)  # spread evenly
    lightness = (0.3 + 0.62 * ranks[:, 0]).tolist()
    chroma = (0.24 * (ranks[:, 1:] - 0.5)).tolist()
    colours = [_rgb(light, *own) for light, own in zip(lightness, chroma, strict=True)]
    return torch.tensor(colours, dtype=torch.uint8, device="cpu")


@torch.no_grad()
def code_patches(vqvae: VQVAE2, level: int) -> Tensor:
    """What each code of a level decodes to where it fills its map: `[K, C, side, side]` in [-1, 1].

    It is the middle of the image; the other levels hold their most frequent code, or code 0 where
    no counts tell which one that is.
    """
    config = vqvae.config
    coarsest = config.level_sizes[0][0]
    sizes = [2 * (height // coarsest) for height, _ in config.level_sizes]
    every = torch.arange(config.num_embeddings, device=device_of(vqvae))
    shares = [code_shares(cast("Quantizer", own)) for own in vqvae.quantizers]
    frequent = [0 if own is None else int(own.argmax()) for own in shares]
    side = 2 * (config.image_size[0] // config.level_sizes[level][0])
    parts = []
    for codes in every.split(_AT_ONCE):
        maps = [
            (codes if n == level else torch.full_like(codes, frequent[n]))[:, None, None].expand(
                len(codes), size, size
            )
            for n, size in enumerate(sizes)
        ]
        images = vqvae.decode(maps).clamp(-1, 1)
        edge = (images.shape[-1] - side) // 2
        parts.append(images[..., edge : edge + side, edge : edge + side].cpu())
    return torch.cat(parts)


def level_colours(vqvae: VQVAE2) -> list[Tensor]:
    """`code_colours` of each level, coarse to fine: codes of bright patches are bright."""
    count = vqvae.config.num_embeddings
    return [
        code_colours(codes_of(own, count), code_shares(own), code_patches(vqvae, n).mean((1, 2, 3)))
        for n, own in enumerate(cast("list[Quantizer]", list(vqvae.quantizers)))
    ]


def _rgb(lightness: float, a: float, b: float) -> list[int]:
    """A colour of Oklab (https://bottosson.github.io/posts/oklab/) in sRGB bytes, clipped."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    clipped = (min(1.0, max(0.0, value)) for value in linear)
    encoded = (
        12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
        for value in clipped
    )
    return [round(255 * value) for value in encoded]
