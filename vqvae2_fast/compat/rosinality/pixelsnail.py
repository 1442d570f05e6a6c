"""Stage 2 of rosinality/vq-vae-2-pytorch: PixelSNAIL and its parts, with its names and numbers.

A checkpoint of the port loads with `load_state_dict`, whichever of torch's weight-norm layouts it
was saved in, and a page of code that used the port's `pixelsnail.py` runs with the import changed.
The arithmetic is that of our operators: causal convolutions skip their dead taps, attention never
forms an N×N matrix. `vqvae2_fast.sample_codes` draws from this class with every engine.

Quirks of the port, kept on purpose:
- Every causal convolution excludes its centre: position p passes only through residual paths.
- The masked entries of `weight_v` are zeroed in place at every forward, before the norm is taken.
  At construction `weight_g` is the norm of the *unmasked* weights.
- `horizontal` is the stream from the rows above and `vertical` the one from the left.
- The shifts of the stem shift its biases too: row 0 has no bias of `horizontal`, column 0 none of
  `vertical`.
- The layer that replaces attention (`PixelBlock.out`) has no residual path.
- The 1×1 blocks around the attention get no condition.
- Dropout in `cond_resnet` and in the output stack is 0.1 whatever `dropout` says.
- Attention drops probabilities, after the softmax, not logits as the paper does.
- A condition in `cache` is kept detached, and is not computed again whatever `condition` says.
- `n_class` is the number of codes of this map and of the condition's.

A defect of the port until 2020-07-02, kept as an option (`activated_skip`): the ELU of a gated
residual layer worked in place, so that the layer added ELU(x) instead of x.

Not kept: masked entries of `weight_v` get gradient zero, where the port leaves a gradient whose
effect it erases at the next forward; the dropout mask of the attention is drawn from a seed, so it
differs from the port's at equal generator states; masked logits are −∞ where the port's are −1e4
(the same float32 softmax unless a live logit falls below −9,000); sizes that the port trips over in
the middle of a forward are refused when the module is made.

Letters: B H W map, V `n_class`, C `channel`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.compat.rosinality.checkpoint import LoadsPortFiles
from vqvae2_fast.compat.rosinality.layers import (
    CausalConv2d,
    GatedResBlock,
    WNConv2d,
    infers_on_cpu,
    shift_down,
    shift_right,
    wn_linear,
)
from vqvae2_fast.modules.as_made import remember_layers
from vqvae2_fast.modules.index_range import check_indices

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CausalAttention", "CondResNet", "PixelBlock", "PixelSNAIL", "causal_mask"]

# Positions of a batch's maps from which reordering weights costs less than channels first do.
_MOST_POSITIONS = 1024


@lru_cache(maxsize=64)
def causal_mask(size: int) -> tuple[Tensor, Tensor]:
    """The port's masks: uint8 `[1, L, L]`, 1 where key < query, and float `[L, 1]`, 0 at row 0.

    For code that used them; `CausalAttention` needs neither.
    """
    mask = torch.ones(size, size, dtype=torch.uint8, device="cpu").tril(-1)
    start_mask = torch.ones(size, dtype=torch.float32, device="cpu")
    start_mask[0] = 0
    return mask.unsqueeze(0), start_mask.unsqueeze(1)


class CausalAttention(nn.Module):
    """Multi-head attention from each position to those before it; the first one gets zeros."""

    def __init__(
        self,
        query_channel: int,
        key_channel: int,
        channel: int,
        n_head: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if channel % n_head:
            raise ValueError(
                f"expected channel to be a multiple of n_head={n_head}, got "
                f"{channel}. In a PixelSNAIL with attention, channel must be a multiple of 16."
            )
        self.query = wn_linear(query_channel, channel)
        self.key = wn_linear(key_channel, channel)
        self.value = wn_linear(key_channel, channel)
        self.dim_head = channel // n_head
        self.n_head = n_head
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """query `[B, Cq, H, W]`, key `[B, Ck, H, W]` -> `[B, channel, H, W]`."""
        batch, _, height, width = key.shape

        def heads(features: Tensor) -> Tensor:
            features = features.view(batch, height * width, self.n_head, self.dim_head)
            return features.transpose(1, 2)  # [B, heads, H·W, dim_head]

        query = query.flatten(2).transpose(1, 2)  # [B, H·W, Cq]
        key = key.flatten(2).transpose(1, 2)  # [B, H·W, Ck]
        drops = self.training and self.dropout.p > 0
        out = ops.causal_attention(
            heads(self.query(query)),
            heads(self.key(key)),
            heads(self.value(key)),
            dropout_p=self.dropout.p if drops else 0.0,
            dropout_on="probabilities",
            seed=torch.randint(2**63 - 1, (), device=query.device) if drops else None,
        )
        out = out.transpose(2, 3)  # [B, heads, dim_head, H·W]: head-major channels
        return out.reshape(batch, self.n_head * self.dim_head, height, width)


class PixelBlock(nn.Module):
    """Gated residual layers, then attention (or a 1×1 layer that sees the position)."""

    def __init__(
        self,
        in_channel: int,
        channel: int,
        kernel_size: int,
        n_res_block: int,
        attention: bool = True,
        dropout: float = 0.1,
        condition_dim: int = 0,
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            GatedResBlock(
                in_channel,
                channel,
                kernel_size,
                conv="causal",
                dropout=dropout,
                condition_dim=condition_dim,
            )
            for _ in range(n_res_block)
        )
        self.attention = attention
        if attention:
            key_channel, query_channel = in_channel * 2 + 2, in_channel + 2
            self.key_resblock = GatedResBlock(key_channel, in_channel, 1, dropout=dropout)
            self.query_resblock = GatedResBlock(query_channel, in_channel, 1, dropout=dropout)
            self.causal_attention = CausalAttention(
                query_channel, key_channel, in_channel // 2, dropout=dropout
            )
            self.out_resblock = GatedResBlock(
                in_channel, in_channel, 1, auxiliary_channel=in_channel // 2, dropout=dropout
            )
        else:
            self.out = WNConv2d(in_channel + 2, in_channel, 1)

    def forward(self, input: Tensor, background: Tensor, condition: Tensor | None = None) -> Tensor:
        out = input
        for resblock in self.resblocks:
            out = resblock(out, condition=condition)
        first = next(iter(self.resblocks), None)
        if isinstance(first, GatedResBlock) and first.activated_skip:
            input = first.activation(input)  # if it works in place, the key sees its result
        result: Tensor
        if not self.attention:
            result = self.out(torch.cat([out, background], 1))
            return result
        key = self.key_resblock(torch.cat([input, out, background], 1))
        query = self.query_resblock(torch.cat([out, background], 1))
        result = self.out_resblock(out, self.causal_attention(query, key))
        return result


class CondResNet(nn.Module):
    """The conditioning stack, not causal: one-hot `[B, V, h, w]` -> `[B, channel, h, w]`."""

    def __init__(self, in_channel: int, channel: int, kernel_size: int, n_res_block: int) -> None:
        super().__init__()
        first = WNConv2d(in_channel, channel, kernel_size, padding=kernel_size // 2)
        self.blocks = nn.Sequential(
            first, *[GatedResBlock(channel, channel, kernel_size) for _ in range(n_res_block)]
        )

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.blocks(input)
        return result


class PixelSNAIL(LoadsPortFiles, nn.Module):
    """The port's autoregressive prior over a map of codes.

    Args:
        shape: H and W of the map.
        n_class: V, codes of this map and of the condition.
        channel: C, channels between layers; with attention a multiple of 16 (8 heads on C//2).
        kernel_size: Side of the causal convolutions, odd.
        n_block, n_res_block: Blocks, and gated residual layers in each.
        res_channel: Channels inside a gated residual layer.
        attention: Whether blocks end in attention.
        dropout: In the blocks and their attention; elsewhere it is 0.1.
        n_cond_res_block, cond_res_channel, cond_res_kernel: Sizes of the conditioning stack; 0 for
            none.
        n_out_res_block: Residual 1×1 layers on top.
        activated_skip: Gated residual layers add ELU(x) instead of x to their result, as the port's
            did until 2020-07-02: their ELU worked in place. Priors that were trained before that
            day need it. It can be set later too.
    """

    background: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        n_class: int,
        channel: int,
        kernel_size: int,
        n_block: int,
        n_res_block: int,
        res_channel: int,
        attention: bool = True,
        dropout: float = 0.1,
        n_cond_res_block: int = 0,
        cond_res_channel: int = 0,
        cond_res_kernel: int = 3,
        n_out_res_block: int = 0,
        activated_skip: bool = False,
    ) -> None:
        super().__init__()
        try:
            height, width = shape
        except (TypeError, ValueError) as error:
            raise type(error)(f"expected shape [H, W], got {shape!r}.") from error
        if n_cond_res_block > 0 and cond_res_channel < 1:
            raise ValueError(
                "expected cond_res_channel >= 1 for the conditioning stack of "
                f"n_cond_res_block={n_cond_res_block}, got {cond_res_channel}."
            )
        if kernel_size % 2 == 0 or kernel_size < 3:
            raise ValueError(
                f"expected an odd kernel_size >= 3, got {kernel_size}: the causal "
                "layers' maps would not fit their residual inputs."
            )
        if attention and channel % 16:
            raise ValueError(
                "expected channel to be a multiple of 16 with attention (8 heads on "
                f"channel // 2), got {channel}."
            )
        # By which drawing knows the modules as they were made.
        self._arguments = (
            (height, width),
            n_class,
            channel,
            kernel_size,
            n_block,
            n_res_block,
            res_channel,
            attention,
            dropout,
            n_cond_res_block,
            cond_res_channel,
            cond_res_kernel,
            n_out_res_block,
        )
        self.n_class = n_class
        self.horizontal = CausalConv2d(
            n_class, channel, [kernel_size // 2, kernel_size], padding="down"
        )
        self.vertical = CausalConv2d(
            n_class, channel, [(kernel_size + 1) // 2, kernel_size // 2], padding="downright"
        )
        rows = (torch.arange(height, dtype=torch.float32) - height / 2) / height
        columns = (torch.arange(width, dtype=torch.float32) - width / 2) / width
        background = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # [2, H, W]
        self.register_buffer("background", background.unsqueeze(0))
        self.blocks = nn.ModuleList(
            PixelBlock(
                channel,
                res_channel,
                kernel_size,
                n_res_block,
                attention=attention,
                dropout=dropout,
                condition_dim=cond_res_channel,
            )
            for _ in range(n_block)
        )
        if n_cond_res_block > 0:
            self.cond_resnet = CondResNet(
                n_class, cond_res_channel, cond_res_kernel, n_cond_res_block
            )
        out: list[nn.Module] = [
            GatedResBlock(channel, res_channel, 1) for _ in range(n_out_res_block)
        ]
        self.out = nn.Sequential(*out, nn.ELU(inplace=True), WNConv2d(channel, n_class, 1))
        self.activated_skip = activated_skip
        if not activated_skip:
            remember_layers(self, *self._arguments)

    @property
    def activated_skip(self) -> bool:
        """Whether the gated residual layers add ELU(x) instead of x."""
        return self._activated_skip

    @activated_skip.setter
    def activated_skip(self, value: bool) -> None:
        self._activated_skip = value
        for module in self.modules():
            if isinstance(module, GatedResBlock):
                module.activated_skip = value

    def forward(
        self,
        input: Tensor,
        condition: Tensor | None = None,
        cache: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of every code given those before it in raster order.

        Args:
            input: Codes, int64 `[B, h, W]`: the whole map or its first h rows.
            condition: The coarser map, int64 `[B, H/2, W/2]`.
            cache: Filled with the condition's features, which the next call then does not compute.

        Returns:
            logits `[B, V, h, W]`, and the cache.

        Raises:
            ValueError: A map that does not fit `shape`, codes outside 0..V-1, or a condition that
                the model cannot take.
            TypeError: Codes of another dtype.
        """
        cache = {} if cache is None else cache
        height, width = self.background.shape[2:]
        if input.dim() != 3 or input.shape[1] > height or input.shape[2] != width:
            raise ValueError(
                f"expected codes [B, h, {width}] with h <= {height}, the shape that it "
                f"was made for, got {list(input.shape)}."
            )
        check_indices(input, self.n_class, "input")
        rows = input.shape[1]
        one_hot = self._one_hot(input)
        out = shift_down(self.horizontal(one_hot)) + shift_right(self.vertical(one_hot))
        background = self.background[:, :, :rows].expand(input.shape[0], -1, -1, -1)
        features = None if condition is None else self._features(condition, cache)[:, :, :rows]
        for block in self.blocks:
            out = block(out, background, condition=features)
        return self.out(out), cache

    def _one_hot(self, codes: Tensor) -> Tensor:
        """`[B, V, H, W]` with its channels last in memory, or first where torch's convolutions read
        a small map: channels last make them reorder every weight at every call."""
        batch, height, width = codes.shape
        if infers_on_cpu(self.background) and codes.numel() < _MOST_POSITIONS:
            one_hot = self.background.new_zeros(batch, self.n_class, height, width)
        else:
            one_hot = self.background.new_zeros(batch, height, width, self.n_class)
            one_hot = one_hot.permute(0, 3, 1, 2)
        return one_hot.scatter_(1, codes.unsqueeze(1), 1.0)

    def _features(self, condition: Tensor, cache: dict[str, Tensor]) -> Tensor:
        """The condition's features at the size of the map, `[B, cond_res_channel, H, W]`."""
        if "condition" in cache:
            return cache["condition"]
        if not hasattr(self, "cond_resnet"):
            raise ValueError(
                "got a condition, but the model has no conditioning stack: it was made "
                "with n_cond_res_block=0."
            )
        height, width = self.background.shape[2:]
        rows, columns = -(-height // 2), width // 2
        if condition.dim() != 3 or condition.shape[1] < rows or 2 * condition.shape[2] != width:
            raise ValueError(
                f"expected condition [B, {rows}, {columns}], half of the map in both "
                f"directions, got {list(condition.shape)}."
            )
        check_indices(condition, self.n_class, "condition")
        features = self.cond_resnet(self._one_hot(condition))
        features = F.interpolate(features, scale_factor=2)  # nearest
        cache["condition"] = features.detach().clone()
        return features

    @staticmethod
    def arguments_of(state_dict: dict[str, Tensor]) -> dict[str, Any]:
        """The constructor arguments that fit a state dict of this class, read off its shapes.

        `dropout` leaves no trace in the shapes and is not among them.
        """

        def shape(key: str) -> tuple[int, ...]:
            return tuple(state_dict[key].shape)

        def count(pattern: str, start: int = 0) -> int:
            """How many keys match `pattern` with start, start + 1, ... in place of the star."""
            index = start
            while pattern.replace("*", str(index)) in state_dict:
                index += 1
            return index - start

        channel, n_class, _, kernel_size = shape("horizontal.conv.conv.weight_v")
        first = "blocks.0.resblocks.0.conv1.conv.conv.weight_v"
        conditioned = "cond_resnet.blocks.0.conv.weight_v" in state_dict
        branch = "blocks.0.resblocks.0.condition.conv.weight_v"
        arguments: dict[str, Any] = {
            "shape": list(shape("background")[2:]),
            "n_class": n_class,
            "channel": channel,
            "kernel_size": kernel_size,
            "n_block": len({key.split(".")[1] for key in state_dict if key.startswith("blocks.")}),
            "n_res_block": count("blocks.0.resblocks.*.conv1.conv.conv.weight_v"),
            "res_channel": shape(first)[0],
            "attention": "blocks.0.causal_attention.query.weight_v" in state_dict,
            "n_cond_res_block": count("cond_resnet.blocks.*.conv1.conv.weight_v", start=1),
            "cond_res_channel": shape(branch)[1] if branch in state_dict else 0,
            "n_out_res_block": count("out.*.conv1.conv.weight_v"),
        }
        if conditioned:
            arguments["cond_res_kernel"] = shape("cond_resnet.blocks.0.conv.weight_v")[2]
        return arguments
