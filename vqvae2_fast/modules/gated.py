"""The gated residual layer: two convolutions, a gate with condition and class, and a skip."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.causal_conv import CausalConv2d, SameConv2d
from vqvae2_fast.modules.summed_labels import summed_rows

__all__ = ["GatedResidual", "upsample_nearest"]

# Standard deviation of the class vectors at the start: a nudge on a gate's input, which is of order
# one. Also GPT-2's for its embeddings.
_CLASS_STD = 0.02


def upsample_nearest(x: Tensor, scale: tuple[int, int], height: int) -> Tensor:
    """x `[B, C, h, w]` repeated `scale` times (rows, columns), cut to its first `height` rows."""
    x = x[:, :, : -(-height // scale[0])]
    if scale == (1, 1):
        return x
    return F.interpolate(x, scale_factor=(float(scale[0]), float(scale[1])))[:, :, :height]


class GatedResidual(nn.Module):
    """x + GLU(conv2(dropout(ELU(conv1(ELU(x)) + aux(ELU(auxiliary))))) + condition + class).

    Args:
        channels: C of input and output.
        inner_channels: Channels between the two convolutions.
        kernel_size: Kernel size of both convolutions.
        mask: Mask of both, as in `ops.causal_conv2d`; None if they see all around (with kernel size
            1, only the position itself).
        auxiliary_channels: Channels of a second input; 0 for none.
        condition_channels: Channels of the condition; 0 for none.
        condition_scale: How many times coarser than x the condition's map is, (rows, columns).
        num_labels: Labels; 0 for none.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int,
        kernel_size: int = 1,
        mask: str | None = None,
        *,
        auxiliary_channels: int = 0,
        condition_channels: int = 0,
        condition_scale: tuple[int, int] = (1, 1),
        num_labels: int = 0,
        dropout: float = 0.0,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.condition_scale = condition_scale

        def convolution(in_channels: int, out_channels: int) -> nn.Module:
            if mask is None:
                return SameConv2d(in_channels, out_channels, kernel_size, weight_norm=weight_norm)
            return CausalConv2d(
                in_channels, out_channels, kernel_size, mask, weight_norm=weight_norm
            )

        self.conv1 = convolution(channels, inner_channels)
        self.conv2 = convolution(inner_channels, 2 * channels)
        self.auxiliary = self.condition = self.classes = None
        if auxiliary_channels:
            self.auxiliary = SameConv2d(auxiliary_channels, inner_channels, weight_norm=weight_norm)
        if condition_channels:
            self.condition = SameConv2d(
                condition_channels, 2 * channels, weight_norm=weight_norm, bias=False
            )
        if num_labels:
            self.classes = nn.Embedding(num_labels, 2 * channels)
            nn.init.normal_(self.classes.weight, std=_CLASS_STD)

    def before_gate(
        self, condition: Tensor | None, labels: Tensor | None, height: int
    ) -> Tensor | None:
        """What condition and class add to the gate's input: `[B, 2C, H, W]` or `[B, 2C, 1, 1]`."""
        of_class = None
        if self.classes is not None:
            assert labels is not None
            # [B, 2C] -> [B, 2C, 1, 1]
            of_class = summed_rows(self.classes, labels)[:, :, None, None]
        if self.condition is None:
            return of_class
        # A pointwise layer and a sum commute with the repetition, and cost less before it.
        added = self.condition(condition)
        if of_class is not None:
            added = added + of_class
        return upsample_nearest(added, self.condition_scale, height)

    def forward(
        self,
        x: Tensor,
        auxiliary: Tensor | None = None,
        condition: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """x `[B, C, H, W]` -> `[B, C, H, W]`.

        Args:
            auxiliary: `[B, auxiliary_channels, H, W]`.
            condition: `[B, condition_channels, H / scale, W / scale]`.
            labels: int64 `[B]`, or `[B, 1 + W]` with words as in summed_labels.py.
        """
        h = self.conv1(x, elu=True)
        if self.auxiliary is not None:
            h = h + self.auxiliary(auxiliary, elu=True)
        h = self.conv2(h, elu=True, dropout_p=self.dropout if self.training else 0.0)
        return ops.gated_residual(h, x, self.before_gate(condition, labels, x.shape[2]))
