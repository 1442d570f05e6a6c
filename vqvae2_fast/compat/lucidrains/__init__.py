"""lucidrains/vector-quantize-pytorch: change the import and keep the code and the state dicts."""

from typing import Any

from vqvae2_fast.compat.lucidrains.fsq import FSQ, GroupedResidualFSQ, ResidualFSQ
from vqvae2_fast.compat.lucidrains.lfq import LFQ, GroupedResidualLFQ, ResidualLFQ
from vqvae2_fast.compat.lucidrains.random_projection import RandomProjectionQuantizer
from vqvae2_fast.compat.lucidrains.residual_vq import GroupedResidualVQ, ResidualVQ
from vqvae2_fast.compat.lucidrains.sequential import Sequential
from vqvae2_fast.compat.lucidrains.sim_vq import ResidualSimVQ, SimVQ
from vqvae2_fast.compat.lucidrains.vector_quantize import LossBreakdown, VectorQuantize
from vqvae2_fast.ops.vector_quantize.op import rotate_gradient as rotate_to

__all__ = [
    "FSQ",
    "LFQ",
    "GroupedResidualFSQ",
    "GroupedResidualLFQ",
    "GroupedResidualVQ",
    "LossBreakdown",
    "RandomProjectionQuantizer",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "ResidualVQ",
    "Sequential",
    "SimVQ",
    "VectorQuantize",
    "rotate_to",
]

_LEFT_OUT = {
    "BinaryMapper": "samples bits instead of quantising; LFQ comes nearest",
    "EvoLFQ": "has no published definition; LFQ comes nearest",
    "FSP": "perturbs instead of rounding; FSQ with noise_dropout comes nearest",
    "HierarchicalVQ": "is one architecture; VQVAE2 of vqvae2_fast comes nearest",
    "LatentQuantize": "learns its grid by an optimiser of its own; FSQ comes nearest",
}


class _LeftOut(NotImplementedError, ImportError):
    """Of `from ... import` too, which would drop the reason of an AttributeError."""


def __getattr__(name: str) -> Any:
    if name in _LEFT_OUT:
        raise _LeftOut(
            f"{name} is not supported: it {_LEFT_OUT[name]}. The "
            "package vector-quantize-pytorch has it."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
