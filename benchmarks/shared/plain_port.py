"""The port's arithmetic in plain PyTorch calls: the "before" of `before_after.py`.

The port itself is not a package that can be installed. These modules compute what a description of
the port says: an N×K matrix of distances and one-hot statistics, padded convolutions over masked
weights, attention through an N×N matrix. The layers around them are those of `compat.rosinality`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.compat import rosinality

__all__ = ["VQVAE", "PixelSNAIL"]


class _Quantize(rosinality.Quantize):
    def forward(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = input.reshape(-1, self.dim)  # [N, D]
        distance = (
            flat.pow(2).sum(1, keepdim=True)
            - 2 * flat @ self.embed
            + self.embed.pow(2).sum(0, keepdim=True)
        )  # [N, K]
        index = (-distance).max(1).indices
        one_hot = F.one_hot(index, self.n_embed).type(flat.dtype)
        index = index.view(input.shape[:-1])
        quantize = self.embed_code(index)
        if self.training:
            counts, sums = one_hot.sum(0), flat.transpose(0, 1) @ one_hot
            self.cluster_size.data.mul_(self.decay).add_(counts, alpha=1 - self.decay)
            self.embed_avg.data.mul_(self.decay).add_(sums.detach(), alpha=1 - self.decay)
            total = self.cluster_size.sum()
            smoothed = (self.cluster_size + self.eps) / (total + self.n_embed * self.eps) * total
            self.embed.data.copy_(self.embed_avg / smoothed.unsqueeze(0))
        diff = (quantize.detach() - input).pow(2).mean()
        return input + (quantize - input).detach(), diff, index


class _WNConv2d(rosinality.WNConv2d):
    def forward(self, input: Tensor) -> Tensor:
        conv = self.conv
        out = F.conv2d(input, conv.weight, conv.bias, self.stride, self.padding)
        return out if self.activation is None else self.activation(out)


class _CausalConv2d(rosinality.CausalConv2d):
    def forward(self, input: Tensor) -> Tensor:
        conv, (height, width) = self.conv.conv, self.conv.kernel_size
        if self.padding == "causal":
            conv.weight_v.data[:, :, -1, width // 2 :].zero_()
        side = width // 2
        across = (width - 1, 0) if self.padding == "downright" else (side, side)
        padded = F.pad(input, (*across, height - 1, 0))
        return F.conv2d(padded, conv.weight, conv.bias)


class _CausalAttention(rosinality.CausalAttention):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        batch, _, height, width = key.shape
        query, key = query.flatten(2).transpose(1, 2), key.flatten(2).transpose(1, 2)

        def heads(features: Tensor) -> Tensor:
            return features.view(batch, -1, self.n_head, self.dim_head).transpose(1, 2)

        mask, start_mask = rosinality.causal_mask(height * width)
        logits = heads(self.query(query)) @ heads(self.key(key)).transpose(2, 3)
        logits = (logits / self.dim_head**0.5).masked_fill(mask == 0, -1e4)
        weights = self.dropout(logits.softmax(3) * start_mask)
        out = (weights @ heads(self.value(key))).transpose(1, 2)
        return out.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


_PLAIN = {
    rosinality.Quantize: _Quantize,
    rosinality.WNConv2d: _WNConv2d,
    rosinality.CausalConv2d: _CausalConv2d,
    rosinality.CausalAttention: _CausalAttention,
}


def _make_plain(model: torch.nn.Module) -> None:
    for module in model.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]


class VQVAE(rosinality.VQVAE):
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        _make_plain(self)


class PixelSNAIL(rosinality.PixelSNAIL):
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        _make_plain(self)

    def _one_hot(self, codes: Tensor) -> Tensor:
        one_hot = F.one_hot(codes, self.n_class).permute(0, 3, 1, 2)
        return one_hot.type_as(self.background)
