"""lucidrains/vector-quantize-pytorch: change the import and keep the code and the state dicts."""

from vqvae2_fast.compat.lucidrains.vector_quantize import LossBreakdown, VectorQuantize

__all__ = ["LossBreakdown", "VectorQuantize"]
