"""What comes before and after the quantisation itself: linear layers and dtypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["projected", "projections", "wide"]


def projections(
    embedding_dim: int, code_dim: int, bias: bool = True
) -> tuple[nn.Module, nn.Module]:
    """Linear layers to the numbers of a code and back, or identities where the sizes are equal."""
    if embedding_dim == code_dim:
        return nn.Identity(), nn.Identity()
    return (
        nn.Linear(embedding_dim, code_dim, bias=bias),
        nn.Linear(code_dim, embedding_dim, bias=bias),
    )


def projected(layer: nn.Module, x: Tensor) -> Tensor:
    """x through one of the layers in the type of its weight; through an identity as it is."""
    weight = getattr(layer, "weight", None)
    out: Tensor = layer(x if weight is None else x.to(weight.dtype))
    return out


def wide(z: Tensor) -> Tensor:
    """z as quantisers compute with it: float64 as it is, every other dtype as float32."""
    return z if z.dtype == torch.float64 else z.float()
