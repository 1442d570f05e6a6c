"""The statistics that training forwards leave for the next update of a codebook.

Sizes: K codes, D embedding_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast.modules.outside_transforms import outside_transforms

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["PendingStatistics"]


class PendingStatistics:
    """Counts and sums of the codes of this process since the latest update.

    They are no buffers: at each forward DistributedDataParallel would overwrite them with those of
    rank 0.

    Attributes:
        counts: int64, `[K]`.
        sums: `[K, D]`, in the codebook's dtype.
    """

    def __init__(self, codebook: Tensor) -> None:
        self.counts = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)
        # Not `zeros_like`, for which torch imports sympy on the meta device (0.4 s).
        self.sums = torch.zeros(codebook.shape, dtype=codebook.dtype, device=codebook.device)

    def apply_(self, function: Callable[[Tensor], Tensor]) -> None:
        """Convert or move them, as `nn.Module._apply` does with buffers."""
        self.counts, self.sums = function(self.counts), function(self.sums)

    def add_(self, counts: Tensor, sums: Tensor) -> None:
        # `fully_shard`, for one, moves a module's buffers without telling the module.
        if self.sums.device != sums.device:
            self.forget_(sums.device)
        _add_(self.counts, counts)
        _add_(self.sums, sums)

    def forget_(self, device: torch.device) -> None:
        """Start at zero, on the device."""
        self.counts, self.sums = _zero_(self.counts, device), _zero_(self.sums, device)


# Transforms of `torch.func` let nothing write to a tensor that they were not given.
@outside_transforms
def _add_(total: Tensor, values: Tensor) -> Tensor:
    return total.add_(values)


@outside_transforms
def _zero_(value: Tensor, device: torch.device) -> Tensor:
    if value.device == device:
        return value.zero_()
    return torch.zeros(value.shape, dtype=value.dtype, device=device)
