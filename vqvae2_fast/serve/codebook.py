"""What the page shows of the codes themselves: colours, neighbours, use, what each decodes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from vqvae2_fast.modules.device import device_of
from vqvae2_fast.serve.images import as_png

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2_fast.models.vqvae2 import VQVAE2
    from vqvae2_fast.modules.quantizer_interface import Quantizer

__all__ = ["described_codebooks"]

_NEIGHBOURS, _COLUMNS, _AT_ONCE, _ROWS = 8, 16, 64, 1024


@torch.no_grad()
def described_codebooks(vqvae: VQVAE2) -> list[dict[str, Any]]:
    """For each level, coarse to fine:

    - `palette`: a colour per code, "#rrggbb": its first three principal coordinates as lightness
      and two opponent colours, so that similar codes look alike;
    - `use`: the share of each code in training; equal where a quantiser keeps no counts;
    - `neighbours`: for each code the nearest others, the nearest first;
    - `patches`: a PNG of what each code decodes to where it fills its map, in rows of `columns`
      squares of `side` pixels; the other levels hold their most frequent code.
    """
    quantizers = [cast("Quantizer", quantizer) for quantizer in vqvae.quantizers]
    every = torch.arange(vqvae.config.num_embeddings, device=device_of(vqvae))
    equal = torch.ones_like(every, dtype=torch.float32)
    counts = [getattr(quantizer, "cluster_size", equal) for quantizer in quantizers]
    frequent = [int(count.argmax()) for count in counts]
    described = []
    for level, quantizer in enumerate(quantizers):
        codebook = quantizer.lookup(every).float()
        patches = _patches(vqvae, level, frequent)
        use = counts[level] / counts[level].sum()
        described.append(
            {
                "palette": _palette(codebook, use, patches.mean((1, 2, 3))),
                "use": [round(share, 6) for share in use.tolist()],
                "neighbours": _nearest(codebook).tolist(),
                "patches": as_png(_sheet(patches)),
                "columns": _COLUMNS,
                "side": patches.shape[-1],
            }
        )
    return described


def _nearest(codebook: Tensor) -> Tensor:
    """int64 `[K, n]`."""
    found = []
    for codes in torch.arange(len(codebook), device=codebook.device).split(_ROWS):
        distances = torch.cdist(codebook[codes], codebook)
        distances[torch.arange(len(codes)), codes] = torch.inf
        found.append(distances.topk(min(_NEIGHBOURS, len(codebook) - 1), largest=False).indices)
    return torch.cat(found)


def _patches(vqvae: VQVAE2, level: int, frequent: list[int]) -> Tensor:
    """`[K, C, side, side]`: the middle of the images in which a code fills its map."""
    config = vqvae.config
    coarsest = config.level_sizes[0][0]
    sizes = [2 * (height // coarsest) for height, _ in config.level_sizes]
    every = torch.arange(config.num_embeddings, device=device_of(vqvae))
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


def _sheet(patches: Tensor) -> Tensor:
    """`[C, rows·side, columns·side]`."""
    count, channels, side, _ = patches.shape
    rows = -(-count // _COLUMNS)
    sheet = torch.ones(rows * _COLUMNS, channels, side, side)
    sheet[:count] = patches
    grid = sheet.view(rows, _COLUMNS, channels, side, side).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * side, _COLUMNS * side)


def _palette(codebook: Tensor, use: Tensor, brightness: Tensor) -> list[str]:
    centred = codebook - (codebook * use[:, None]).sum(0)
    _, _, axes = torch.linalg.svd(centred * use.sqrt()[:, None], full_matrices=False)
    places = centred @ axes[:3].T  # [K, 3]
    if places.shape[1] < 3:
        places = torch.nn.functional.pad(places, (0, 3 - places.shape[1]))
    # Bright codes are bright; the signs of the other axes are arbitrary but fixed.
    if (places[:, 0] * (brightness.to(places) - brightness.mean())).sum() < 0:
        places[:, 0] = -places[:, 0]
    ranks = places.argsort(0).argsort(0).float() / max(1, len(places) - 1)  # spread evenly
    lightness = 0.3 + 0.62 * ranks[:, 0]
    return [
        _hexadecimal(light, *chroma)
        for light, chroma in zip(
            lightness.tolist(), (0.24 * (ranks[:, 1:] - 0.5)).tolist(), strict=True
        )
    ]


def _hexadecimal(lightness: float, a: float, b: float) -> str:
    """A colour of Oklab (https://bottosson.github.io/posts/oklab/) in sRGB, clipped."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    encoded = (
        12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
        for value in (min(1.0, max(0.0, value)) for value in linear)
    )
    return "#" + "".join(f"{round(255 * value):02x}" for value in encoded)
