"""lucidrains/vector-quantize-pytorch: change the import and keep the code and the state dicts."""

from vqvae2_fast.compat.lucidrains.fsq import FSQ
from vqvae2_fast.compat.lucidrains.lfq import LFQ, GroupedResidualLFQ, ResidualLFQ
from vqvae2_fast.compat.lucidrains.residual_fsq import GroupedResidualFSQ, ResidualFSQ
from vqvae2_fast.compat.lucidrains.sim_vq import ResidualSimVQ, SimVQ
from vqvae2_fast.compat.lucidrains.vector_quantize import LossBreakdown, VectorQuantize

__all__ = [
    "FSQ",
    "LFQ",
    "GroupedResidualFSQ",
    "GroupedResidualLFQ",
    "LossBreakdown",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "SimVQ",
    "VectorQuantize",
]
