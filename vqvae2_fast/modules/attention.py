"""Causal multi-head attention over a map in raster order."""

from __future__ import annotations

from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.causal_conv import SameConv2d
from vqvae2_fast.ops._batch_part import dropout_seed

__all__ = ["CausalAttention"]


class CausalAttention(nn.Module):
    """Position p attends to positions < p; keys and values come from one map, queries from another.

    Args:
        channels: Channels of queries, keys, values and output; a multiple of `num_heads`.
        dropout_on: `logits` (section 3.2 of https://arxiv.org/abs/1906.00446) or `probabilities`.
    """

    def __init__(
        self,
        query_channels: int,
        key_channels: int,
        channels: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        dropout_on: str = "logits",
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(
                f"expected channels a multiple of num_heads={num_heads}, got {channels}."
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.dropout_on = dropout_on
        self.query = SameConv2d(query_channels, channels, weight_norm=weight_norm)
        self.key = SameConv2d(key_channels, channels, weight_norm=weight_norm)
        self.value = SameConv2d(key_channels, channels, weight_norm=weight_norm)

    def _heads(self, x: Tensor) -> Tensor:
        """`[B, heads·d, H, W]` -> `[B, heads, H·W, d]`; head-major as in the port."""
        batch, channels, height, width = x.shape
        heads = self.num_heads, channels // self.num_heads
        sequence = x.permute(0, 2, 3, 1).reshape(batch, height * width, *heads)
        return sequence.transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """query `[B, query_channels, H, W]`, key `[B, key_channels, H, W]` -> `[B, C, H, W]`."""
        batch, _, height, width = query.shape
        dropout = self.dropout if self.training else 0.0
        seed = dropout_seed(query.device) if dropout > 0 else None
        q = self._heads(self.query(query))
        k, v = self._heads(self.key(key)), self._heads(self.value(key))
        out = ops.causal_attention(q, k, v, dropout, self.dropout_on, seed)
        # [B, heads, H·W, d] -> [B, H, W, C] -> [B, C, H, W], channels last in memory
        return out.transpose(1, 2).flatten(2).unflatten(1, (height, width)).permute(0, 3, 1, 2)
