"""The conditioning stack of a plan. Every engine except `cpu` runs it here, once per draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from vqvae2_fast import ops
from vqvae2_fast.modules.gated import upsample_nearest
from vqvae2_fast.sampling.bounds import SAMPLING_BOUND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vqvae2_fast.sampling.plan import ConditionPlan

__all__ = ["condition_features"]


def condition_features(plan: ConditionPlan, maps: Sequence[Tensor]) -> Tensor:
    """Features of the coarser maps, `[B, h, w, C]`, at the size of the finest of them.

    They are NaN where an activation is beyond `SAMPLING_BOUND`.

    Args:
        maps: int64 `[B, h, w]` each, coarse to fine.
    """
    kernel, half = plan.kernel_size, plan.kernel_size // 2
    around = [(row - half, column - half) for row in range(kernel) for column in range(kernel)]
    features = None
    for codes, table, bias in zip(maps, plan.stems, plan.stem_biases, strict=True):
        own = ops.code_conv2d(codes, table, around) + bias[:, None, None]  # [B, C, h, w]
        height, width = codes.shape[1:]
        if features is not None:
            scale = (height // features.shape[2], width // features.shape[3])
            own = upsample_nearest(features, scale, height) + own
        features = own
    assert features is not None
    for n in range(plan.num_layers):
        h = features
        for conv in (plan.conv1, plan.conv2):
            h = F.conv2d(_bounded_elu(h), conv.weights[n], conv.biases[n], padding=half)
        features = F.glu(h, dim=1) + features
    features = torch.where(features.abs() <= SAMPLING_BOUND, features, torch.nan)
    return features.permute(0, 2, 3, 1).contiguous()  # [B, h, w, C]


def _bounded_elu(x: Tensor) -> Tensor:
    return torch.where(x <= SAMPLING_BOUND, F.elu(x), torch.nan)
