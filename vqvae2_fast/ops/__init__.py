"""Operators: tensors in, tensors out. Each folder holds one, with its reference and its notes."""

from vqvae2_fast.ops._native import build_info, simd_level
from vqvae2_fast.ops._registry import OPERATORS, owner
from vqvae2_fast.ops.causal_attention.op import causal_attention
from vqvae2_fast.ops.causal_conv2d.op import causal_conv2d, live_taps, tap_mask
from vqvae2_fast.ops.code_conv2d.op import code_conv2d
from vqvae2_fast.ops.code_statistics.op import code_statistics
from vqvae2_fast.ops.draw_codes.op import draw_codes
from vqvae2_fast.ops.dropout_mask.op import dropout_mask
from vqvae2_fast.ops.ema_update.op import ema_update_
from vqvae2_fast.ops.gated_residual.op import gated_residual
from vqvae2_fast.ops.gumbel_noise.op import gumbel_noise
from vqvae2_fast.ops.nearest_code.op import nearest_code
from vqvae2_fast.ops.residual_code_statistics.op import residual_code_statistics
from vqvae2_fast.ops.residual_nearest_code.op import residual_nearest_code
from vqvae2_fast.ops.scalar_quantize.op import scalar_quantize
from vqvae2_fast.ops.sign_quantize.op import sign_quantize
from vqvae2_fast.ops.vector_quantize.op import vector_quantize

__all__ = [
    "OPERATORS",
    "build_info",
    "causal_attention",
    "causal_conv2d",
    "code_conv2d",
    "code_statistics",
    "draw_codes",
    "dropout_mask",
    "ema_update_",
    "gated_residual",
    "gumbel_noise",
    "live_taps",
    "nearest_code",
    "owner",
    "residual_code_statistics",
    "residual_nearest_code",
    "scalar_quantize",
    "sign_quantize",
    "simd_level",
    "tap_mask",
    "vector_quantize",
]
