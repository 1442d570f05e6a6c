"""What the page shows of the codes themselves: colours, neighbours, use, what each decodes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from vqvae2_fast.models.code_colours import code_colours, code_patches, code_shares, codes_of
from vqvae2_fast.serve.images import as_png

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2_fast.models.vqvae2 import VQVAE2
    from vqvae2_fast.modules.quantizer_interface import Quantizer

__all__ = ["described_codebooks"]

_NEIGHBOURS, _COLUMNS, _ROWS = 8, 16, 1024


@torch.no_grad()
def described_codebooks(vqvae: VQVAE2) -> list[dict[str, Any]]:
    """For each level, coarse to fine:

    - `palette`: a colour per code, "#rrggbb", such that similar codes look alike;
    - `use`: the share of each code in training; None where a quantiser keeps no counts;
    - `neighbours`: for each code the nearest others, the nearest first;
    - `patches`: a PNG of what each code decodes to where it fills its map, in rows of `columns`
      squares of `side` pixels; the other levels hold their most frequent code (without counts,
      code 0).
    """
    count, described = vqvae.config.num_embeddings, []
    for level, own in enumerate(vqvae.quantizers):
        quantizer = cast("Quantizer", own)
        codebook, shares = codes_of(quantizer, count), code_shares(quantizer)
        patches = code_patches(vqvae, level)
        colours = code_colours(codebook, shares, patches.mean((1, 2, 3)))
        described.append(
            {
                "palette": [f"#{bytes(colour).hex()}" for colour in colours.tolist()],
                "use": None if shares is None else [round(one, 6) for one in shares.tolist()],
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
        distances[torch.arange(len(codes), device="cpu"), codes] = torch.inf
        found.append(distances.topk(min(_NEIGHBOURS, len(codebook) - 1), largest=False).indices)
    return torch.cat(found)


def _sheet(patches: Tensor) -> Tensor:
    """`[C, rows·side, columns·side]`."""
    count, channels, side, _ = patches.shape
    rows = -(-count // _COLUMNS)
    sheet = torch.ones(rows * _COLUMNS, channels, side, side, dtype=torch.float32, device="cpu")
    sheet[:count] = patches
    grid = sheet.view(rows, _COLUMNS, channels, side, side).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * side, _COLUMNS * side)
