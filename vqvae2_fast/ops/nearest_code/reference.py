"""Reference of `nearest_code`: the definition, in float64, summed in the order of d."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_exporting

__all__ = ["nearest_code_reference", "squared_distances"]

# Float64 distances that are held at once: 2^22 entries are 32 MiB.
_MAX_DISTANCES = 1 << 22


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Σ_d (z_d − e_d)² in float64, each sum in the order of d, never contracted to an FMA.

    z `[N, D]`, codebook `[K, D]` -> `[N, K]`.
    """
    # Each dimension of the codes lies in one piece, which is read two to three times as fast.
    z, columns = z.double(), codebook.double().t().contiguous()  # [N, D], [D, K]
    # `len` would fix N in a program for any number of vectors.
    total = z.new_zeros(z.shape[0], len(codebook))  # [N, K]
    for d in range(z.shape[1]):
        total += (z[:, d, None] - columns[d]).square_()
    return total


def _nearest(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    distances = squared_distances(z, codebook)  # [N, K]
    # NaN never wins and ties take the lowest index; a row that is all NaN gives 0.
    indices = distances.nan_to_num(nan=torch.inf, posinf=torch.inf).argmin(dim=1)
    return indices, distances.gather(1, indices[:, None]).squeeze(1).float()


def nearest_code_reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    z, codebook = z.detach(), codebook.detach()
    if is_exporting():
        # A program for any number of vectors cannot loop over pieces of them.
        return _nearest(z, codebook)
    indices = z.new_empty(len(z), dtype=torch.int64)
    sqdist = z.new_empty(len(z), dtype=torch.float32)
    rows = max(1, _MAX_DISTANCES // len(codebook))
    for start in range(0, len(z), rows):
        piece = slice(start, start + rows)
        indices[piece], sqdist[piece] = _nearest(z[piece], codebook)
    return indices, sqdist
