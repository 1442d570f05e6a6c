"""`Sequential` of lucidrains/vector-quantize-pytorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vqvae2_fast.compat.lucidrains.fsq import FSQ
from vqvae2_fast.compat.lucidrains.lfq import LFQ
from vqvae2_fast.compat.lucidrains.random_projection import RandomProjectionQuantizer
from vqvae2_fast.compat.lucidrains.residual import Grouped, Residual
from vqvae2_fast.compat.lucidrains.sim_vq import SimVQ
from vqvae2_fast.compat.lucidrains.vector_quantize import VectorQuantize

__all__ = ["Sequential"]

_QUANTIZERS = (VectorQuantize, Residual, Grouped, FSQ, LFQ, SimVQ, RandomProjectionQuantizer)


class Sequential(nn.Module):
    """Modules in a row, one of them a quantiser, whose further results are returned at the end.

    Args:
        fns: The modules.
    """

    def __init__(self, *fns: nn.Module) -> None:
        super().__init__()
        count = sum(isinstance(fn, _QUANTIZERS) for fn in fns)
        if count != 1:
            raise ValueError(f"expected exactly one quantiser, got {count}.")
        self.fns = nn.ModuleList(fns)

    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Any, ...]:
        """Keyword arguments go to the quantiser."""
        rest: tuple[Any, ...] = ()
        for fn in self.fns:
            if isinstance(fn, _QUANTIZERS):
                x, *others = fn(x, **kwargs)
                rest = tuple(others)
            else:
                x = fn(x)
        return (x, *rest)
