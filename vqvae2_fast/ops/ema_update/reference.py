"""Reference of `ema_update_`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ema_update_reference"]


def ema_update_reference(
    counts: Tensor,
    sums: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    codebook: Tensor,
    decay: float,
    epsilon: float,
) -> None:
    cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
    embed_avg.mul_(decay).add_(sums, alpha=1 - decay)
    total = cluster_size.sum()
    smoothed = (cluster_size + epsilon) / (total + len(cluster_size) * epsilon) * total  # [K]
    # Before any vector was counted there is no mean to move to.
    codebook.copy_(torch.where(total > 0, embed_avg / smoothed[:, None], codebook))
