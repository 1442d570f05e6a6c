"""Weight-normalised layers of the port's PixelSNAIL; its quirks are listed in `pixelsnail.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.compat.rosinality.checkpoint import renamed_weight_norm
from vqvae2_fast.ops.normed_conv2d.op import normed_conv2d

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "CausalConv2d",
    "GatedResBlock",
    "WNConv2d",
    "infers_on_cpu",
    "shift_down",
    "shift_right",
    "wn_linear",
]


class _WeightNorm(nn.Module):
    """Gives a layer the parameters `bias`, `weight_g`, `weight_v`: `weight = g · v / ‖v‖`.

    The norm goes over all dimensions but the first (https://arxiv.org/abs/1602.07868). Loads the
    keys of `torch.nn.utils.weight_norm` and of `torch.nn.utils.parametrizations.weight_norm`.
    """

    weight_g: nn.Parameter
    weight_v: nn.Parameter

    def _norm_weight(self) -> None:
        """Replace the parameter `weight` by its norm and direction."""
        weight = self._parameters.pop("weight")
        assert weight is not None
        norm = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1)  # [out]
        self.weight_g = nn.Parameter(norm.view(-1, *[1] * (weight.dim() - 1)))
        self.weight_v = nn.Parameter(weight.detach())

    def __getattr__(self, name: str) -> Any:
        # nn.Module looks here for what is not an attribute; `weight` no longer is one.
        if name == "weight" and "weight_v" in self._parameters:
            return torch._weight_norm(self.weight_v, self.weight_g, 0)
        return super().__getattr__(name)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if (old := renamed_weight_norm(key)) != key:
                state_dict[old] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _NormedLinear(_WeightNorm, nn.Linear):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self._norm_weight()


class _NormedConv2d(_WeightNorm, nn.Conv2d):
    """A convolution for code that looks for `nn.Conv2d` among the modules; `WNConv2d` computes
    it."""

    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        kernel_size: tuple[int, int],
        stride: int,
        padding: int,
        bias: bool,
    ) -> None:
        super().__init__(in_channel, out_channel, kernel_size, stride, padding, bias=bias)
        self._norm_weight()


def infers_on_cpu(input: Tensor) -> bool:
    """Whether torch's convolutions compute the layers: `normed_conv2d` has no kernel for this.

    Without one it takes several calls for the weight's mask and norm. That matters where the port
    samples, which runs every layer on a small map for each code.
    """
    return input.is_cpu and not torch.is_grad_enabled()


def wn_linear(in_dim: int, out_dim: int) -> nn.Module:
    """A weight-normalised linear layer."""
    return _NormedLinear(in_dim, out_dim)


class WNConv2d(nn.Module):
    """A weight-normalised convolution, optionally followed by `activation`."""

    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        kernel_size: int | Sequence[int],
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        kernel = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        self.conv = _NormedConv2d(in_channel, out_channel, kernel, stride, padding, bias)  # type: ignore[arg-type]
        self.out_channel = out_channel
        self.kernel_size = kernel
        self.stride = stride
        self.padding = padding
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        conv, (height, width) = self.conv, self.kernel_size
        is_same = self.stride == 1 and height == width == 2 * self.padding + 1
        if is_same and not infers_on_cpu(input):
            out = normed_conv2d(input, conv.weight_v, conv.weight_g, conv.bias, "same")
        else:
            out = F.conv2d(input, conv.weight, conv.bias, self.stride, self.padding)
        return out if self.activation is None else self.activation(out)


def shift_down(input: Tensor, size: int = 1) -> Tensor:
    """`[B, C, H, W]` moved down by `size` rows, zeros coming in."""
    return F.pad(input, (0, 0, size, 0))[:, :, : input.shape[2], :]


def shift_right(input: Tensor, size: int = 1) -> Tensor:
    """`[B, C, H, W]` moved right by `size` columns, zeros coming in."""
    return F.pad(input, (size, 0, 0, 0))[:, :, :, : input.shape[3]]


class CausalConv2d(nn.Module):
    """A weight-normalised convolution whose last kernel row is the current row.

    Args:
        padding: `downright`: kernel columns end at the current one. `down`: they are centred, and
            the whole current row counts. `causal`: centred, without the centre and what is right of
            it in the current row.
    """

    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        kernel_size: int | Sequence[int],
        stride: int = 1,
        padding: str = "downright",
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if padding not in ("downright", "down", "causal"):
            raise ValueError(f"expected padding 'downright', 'down' or 'causal', got {padding!r}.")
        self.conv = WNConv2d(in_channel, out_channel, kernel_size, stride, 0, activation=activation)
        self.padding = padding

    def forward(self, input: Tensor) -> Tensor:
        conv = self.conv.conv
        height, width = self.conv.kernel_size
        if self.padding == "causal":
            # Through .data, as the port does: the version counter that autograd checks stays.
            conv.weight_v.data[:, :, -1, width // 2 :].zero_()
        is_masked = self.padding == "downright" or (self.padding == "causal" and width % 2)
        if is_masked and self.conv.stride == 1 and not infers_on_cpu(input):
            mask = "downright" if self.padding == "downright" else "exclude"
            out = normed_conv2d(input, conv.weight_v, conv.weight_g, conv.bias, mask)
        else:
            side = width // 2
            across = (width - 1, 0) if self.padding == "downright" else (side, side)
            padded = F.pad(input, (*across, height - 1, 0))
            out = F.conv2d(padded, conv.weight, conv.bias, self.conv.stride)
        return out if self.conv.activation is None else self.conv.activation(out)


_CONVOLUTIONS = {"causal_downright": "downright", "causal": "causal"}


class GatedResBlock(nn.Module):
    """`GLU(conv2(dropout(ELU(conv1(ELU(x)) + aux))) + condition) + x`.

    Args:
        in_channel: Channels of x and of the result.
        channel: Channels between the convolutions.
        kernel_size: Odd for `wnconv2d` and `causal`.
        conv: `wnconv2d` (plain, same size), `causal` or `causal_downright`.
        auxiliary_channel: Channels of the second input; 0 for none.
        condition_dim: Channels of the condition; 0 for none.

    With `activated_skip` the last term is ELU(x); see `PixelSNAIL`.
    """

    activated_skip = False

    def __init__(
        self,
        in_channel: int,
        channel: int,
        kernel_size: int,
        conv: str = "wnconv2d",
        activation: Callable[[], nn.Module] = nn.ELU,
        dropout: float = 0.1,
        auxiliary_channel: int = 0,
        condition_dim: int = 0,
    ) -> None:
        super().__init__()
        if conv not in ("wnconv2d", *_CONVOLUTIONS):
            raise ValueError(
                f"expected conv 'wnconv2d', 'causal_downright' or 'causal', got {conv!r}."
            )
        if kernel_size % 2 == 0 and conv != "causal_downright":
            raise ValueError(
                f"expected an odd kernel_size, got {kernel_size}: an even one gives "
                f"a map one column wider than the residual input. Use {kernel_size + 1}."
            )

        def convolution(inner: int, outer: int) -> nn.Module:
            if conv == "wnconv2d":
                return WNConv2d(inner, outer, kernel_size, padding=kernel_size // 2)
            return CausalConv2d(inner, outer, kernel_size, padding=_CONVOLUTIONS[conv])

        self.activation = activation()
        self.conv1 = convolution(in_channel, channel)
        if auxiliary_channel > 0:
            self.aux_conv = WNConv2d(auxiliary_channel, channel, 1)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(channel, in_channel * 2)
        if condition_dim > 0:
            self.condition = WNConv2d(condition_dim, in_channel * 2, 1, bias=False)

    def forward(
        self, input: Tensor, aux_input: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        activated = self.activation(input)
        out = self.conv1(activated)
        if aux_input is not None:
            out = out + self.aux_conv(self.activation(aux_input))
        out = self.conv2(self.dropout(self.activation(out)))
        return ops.gated_residual(
            out,
            activated if self.activated_skip else input,
            None if condition is None else self.condition(condition),
        )
