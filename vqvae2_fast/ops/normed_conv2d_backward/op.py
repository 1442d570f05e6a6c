"""`normed_conv2d_backward`: the gradients of `normed_conv2d`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.normed_conv2d_backward.reference import normed_conv2d_backward_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NORMED_CONV2D_BACKWARD"]


def _fake(
    dy: Tensor,
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None,
    top: int,
    left: int,
    live: int,
    elu: bool,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = new_channels_last(x, x.shape[1])
    outputs = weight_v.shape[0]
    dg = weight_v.new_empty(0 if weight_g is None else outputs)
    return dx, weight_v.new_empty(weight_v.shape), dg, weight_v.new_empty(outputs)


def _refusal(
    dy: Tensor,
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None,
    top: int,
    left: int,
    live: int,
    elu: bool,
    dropout_p: float,
    seed: Tensor | None,
) -> str | None:
    if dy.dtype != torch.float32:
        return f"{str(dy.dtype).removeprefix('torch.')} gradient"
    from vqvae2_fast.ops.normed_conv2d.op import NORMED_CONV2D

    return NORMED_CONV2D.refusal(x, weight_v, weight_g)


# Not public: `normed_conv2d` calls it. dy `[B, C_out, H, W]` and its other arguments to dx, dv,
# dg `[C_out]`, empty without g, and dbias `[C_out]`.
NORMED_CONV2D_BACKWARD = register(
    "normed_conv2d_backward",
    "(Tensor dy, Tensor x, Tensor weight_v, Tensor? weight_g, int top, int left, int live, "
    "bool elu, float dropout_p, Tensor? seed) -> (Tensor dx, Tensor dv, Tensor dg, "
    "Tensor dbias)",
    reference=normed_conv2d_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    refusal=_refusal,
)
