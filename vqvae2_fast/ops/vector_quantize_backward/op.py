"""`vector_quantize_backward`: the gradient of `vector_quantize`, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.vector_quantize_backward.reference import vector_quantize_backward_reference

__all__ = ["VECTOR_QUANTIZE_BACKWARD"]

NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _fake(dz_q: Tensor, dcommitment: Tensor, z: Tensor, z_q: Tensor) -> Tensor:
    return z.new_empty(z.shape)


def _refusal(dz_q: Tensor, dcommitment: Tensor, z: Tensor, z_q: Tensor) -> str | None:
    for tensor, name in ((dz_q, "gradient"), (z, "input")):
        if tensor.dtype not in NATIVE_DTYPES:
            return f"{str(tensor.dtype).removeprefix('torch.')} {name}"
    if dcommitment.dtype != torch.float32:
        return f"{str(dcommitment.dtype).removeprefix('torch.')} gradient of the commitment"
    return None


# Not public: `vector_quantize` calls it. dz = dz_q + dcommitment 2 / (N D) (z - z_q), of
# dz_q, z, z_q `[N, D]` and dcommitment 0-d float32; the result has z's dtype.
VECTOR_QUANTIZE_BACKWARD = register(
    "vector_quantize_backward",
    "(Tensor dz_q, Tensor dcommitment, Tensor z, Tensor z_q) -> Tensor",
    reference=vector_quantize_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    refusal=_refusal,
)
