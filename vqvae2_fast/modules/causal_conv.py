"""Convolutions of the prior: weight-normalised or plain, causal or over the whole neighbourhood.

Sizes: B batch, C channels, H W of a code map. Masks are those of `ops.causal_conv2d`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.contexts import is_unfilled
from vqvae2_fast.ops.normed_conv2d.op import normed_conv2d, normed_weight

__all__ = ["CausalConv2d", "ConvWeight", "SameConv2d"]


class ConvWeight(nn.Module):
    """Weight of a convolution: v, or g · v / ‖v‖ (eq. 2 of https://arxiv.org/abs/1602.07868).

    The norm is taken per output channel. Dead taps of v are set to zero before it: their values,
    which a loaded file may hold, change nothing and get no gradient.

    Args:
        shape: `[C_out, C_in, kh, kw]`.
        num_live: How many taps count, the first ones row by row; None for all.
        one_hot: The input has one 1 among its C_in channels (a code map): the initial weights are
            scaled for a sum over taps, not over taps and channels.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        num_live: int | None = None,
        weight_norm: bool = True,
        one_hot: bool = False,
    ) -> None:
        super().__init__()
        num_taps = shape[2] * shape[3]
        self.num_live = num_taps if num_live is None else num_live
        if self.num_live == 0:
            raise ValueError(f"expected at least one live tap in a kernel {shape[2:]}.")
        # The bound of torch's convolutions, 1/sqrt(inputs), with only live inputs counted.
        bound = 1 / math.sqrt(self.num_live * (1 if one_hot else shape[1]))
        self.weight_v = nn.Parameter(torch.empty(shape))
        norm = torch.empty(shape[0], 1, 1, 1)
        if not is_unfilled():
            nn.init.uniform_(self.weight_v, -bound, bound)
            norm = torch.linalg.vector_norm(self.masked_v(), dim=(1, 2, 3), keepdim=True).detach()
        self.weight_g = nn.Parameter(norm) if weight_norm else None

    @property
    def live(self) -> Tensor | None:
        """Bool `[kh, kw]` on the weight's device, the taps that count; None if all do."""
        v = self.weight_v
        num_taps = v.shape[2:].numel()
        if self.num_live == num_taps:
            return None
        # Not a buffer: `to_empty()` would lose it, and averages of buffers take no bool.
        return (torch.arange(num_taps, device=v.device) < self.num_live).view(v.shape[2:])

    def masked_v(self) -> Tensor:
        """v `[C_out, C_in, kh, kw]` with zeros for its dead taps."""
        live = self.live
        return self.weight_v if live is None else self.weight_v.where(live, 0.0)

    def forward(self) -> Tensor:
        return normed_weight(self.masked_v(), self.weight_g)

    def convolve(
        self,
        x: Tensor,
        bias: Tensor | None,
        mask: str,
        *,
        elu: bool = False,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """x `[B, C_in, H, W]` with this weight; arguments as in `normed_conv2d`."""
        return normed_conv2d(
            x, self.weight_v, self.weight_g, bias, mask, self.live, elu=elu, dropout_p=dropout_p
        )


class CausalConv2d(nn.Module):
    """`ops.causal_conv2d` with its weights; the output has the input's size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask: str,
        *,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.mask = mask
        self.kernel = ConvWeight(
            (out_channels, in_channels, height, width),
            num_live=len(ops.live_taps(mask, height, width)),
            weight_norm=weight_norm,
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, *, elu: bool = False, dropout_p: float = 0.0) -> Tensor:
        """The convolution of dropout(ELU(x)), or of x."""
        return self.kernel.convolve(x, self.bias, self.mask, elu=elu, dropout_p=dropout_p)


class SameConv2d(nn.Module):
    """A convolution that keeps the size and sees all around; kernel size 1 is a pointwise layer."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        weight_norm: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"expected an odd kernel_size, got {kernel_size}.")
        self.kernel = ConvWeight(
            (out_channels, in_channels, kernel_size, kernel_size), weight_norm=weight_norm
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, *, elu: bool = False, dropout_p: float = 0.0) -> Tensor:
        """The convolution of dropout(ELU(x)), or of x."""
        return self.kernel.convolve(x, self.bias, "same", elu=elu, dropout_p=dropout_p)
