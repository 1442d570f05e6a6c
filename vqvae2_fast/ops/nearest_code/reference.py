"""Reference of `nearest_code`: the definition, in float64, summed in the order of d."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest_code_reference", "squared_distances"]

# Float64 distances that are held at once: 2^22 entries are 32 MiB.
_MAX_DISTANCES = 1 << 22


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Σ_d (z_d − e_d)² in float64, each sum in the order of d, never contracted to an FMA.

    z `[N, D]`, codebook `[K, D]` -> `[N, K]`.
    """
    # Each dimension of the codes lies in one piece, which is read two to three times as fast.
    z, columns = z.double(), codebook.double().t().contiguous()  # [N, D], [D, K]
    total = z.new_zeros(len(z), len(codebook))  # [N, K]
    for d in range(z.shape[1]):
        total += (z[:, d, None] - columns[d]).square_()
    return total


def nearest_code_reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    z, codebook = z.detach(), codebook.detach()
    indices = z.new_empty(len(z), dtype=torch.int64)
    sqdist = z.new_empty(len(z), dtype=torch.float32)
    rows = max(1, _MAX_DISTANCES // len(codebook))
    for start in range(0, len(z), rows):
        distances = squared_distances(z[start : start + rows], codebook)  # [rows, K]
        # NaN never wins and ties take the lowest index; a row that is all NaN gives 0.
        index = distances.nan_to_num(nan=torch.inf, posinf=torch.inf).argmin(dim=1)
        indices[start : start + rows] = index
        sqdist[start : start + rows] = distances.gather(1, index[:, None]).squeeze(1).float()
    return indices, sqdist
