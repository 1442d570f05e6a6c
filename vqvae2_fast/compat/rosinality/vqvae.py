"""Stage 1 of rosinality/vq-vae-2-pytorch: its modules and numbers, on our operators.

A checkpoint of the port loads with `load_state_dict`, and a page of code that used the port's
`vqvae.py` runs with the import changed. Written from a description of the port, tested against
tensors computed with it (`tests/data/golden`). Library defaults live in `vqvae2_fast.VQVAE2`.

Quirks of the port, kept on purpose:
- `VQVAE(decay=...)` is accepted and ignored: both quantisers use 0.99.
- The moving averages start from a count of zero, so a code that takes no vector grows to 1e5 times
  its length and returns after about 1,145 steps.
- `Quantize` returns `x + (q - x)`: up to a rounding error away from the codebook row q.
- The codebook is stored as `[D, K]`: codes are columns.
- `diff` has shape `(1,)` and is the sum over the levels, without the weight of 0.25.

A defect of the port until 2021-01-23, kept as an option (`rectified_skip`): the first ReLU of a
residual block worked in place, so that the block added ReLU(x) instead of x.

Not kept: the search is exact in float64 with ties to the lowest index (the port's is float32, or
half under autocast, and its ties are undefined), and sizes that the port trips over in the middle
of a forward are refused at its start.

Letters: B C H W images, D `embed_dim`, K `n_embed`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.compat.rosinality.checkpoint import LoadsPortFiles
from vqvae2_fast.modules.index_range import check_indices

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LEVELS", "VQVAE", "Decoder", "Encoder", "Quantize", "ResBlock"]

# The last letters of the levels' names, coarse to fine: top, middle, bottom.
LEVELS = {1: "b", 2: "tb", 3: "tmb"}


class Quantize(nn.Module):
    """Vector quantiser with a codebook of moving averages.

    Args:
        dim: D.
        n_embed: K.
        decay: γ of the averages.
        eps: ε of the Laplace smoothing.
    """

    embed: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(self, dim: int, n_embed: int, decay: float = 0.99, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim = dim
        self.n_embed = n_embed
        self.decay = decay
        self.eps = eps
        embed = torch.randn(dim, n_embed)
        self.register_buffer("embed", embed)
        self.register_buffer("cluster_size", torch.zeros(n_embed))
        self.register_buffer("embed_avg", embed.clone())

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest codes by the codebook as it is now; then, in training, one step of the averages.

        Args:
            input: x, `[..., D]`, floating.

        Returns:
            quantize: `x + sg[q - x]`, `[..., D]`.
            diff: mean((sg[q] - x)²), 0-d, in the codebook's dtype.
            embed_ind: int64, `[...]`.

        Raises:
            ValueError: The last size of input is not D.
        """
        if input.dim() == 0 or input.shape[-1] != self.dim:
            raise ValueError(
                f"expected input [..., D] with D={self.dim}, got {list(input.shape)}. "
                "Images are NCHW: permute(0, 2, 3, 1) first."
            )
        x = input.to(self.embed.dtype)
        # The operators take codes as rows; the copy is K·D values.
        codebook = self.embed.t().contiguous()  # [K, D]
        rows, embed_ind, diff = ops.vector_quantize(x, codebook)
        # The operator's loss is float32, which would round one of float64.
        exact = x.dtype == torch.float64
        diff = F.mse_loss(x, rows.detach()) if exact else diff.to(x.dtype)
        if self.training:
            self._update_averages(x, embed_ind)
        quantize = input + (rows - input).detach()
        return quantize, diff, embed_ind

    def embed_code(self, embed_id: Tensor) -> Tensor:
        """Codebook rows of int64 `[...]` as `[..., D]`."""
        return F.embedding(embed_id, self.embed.t())

    @torch.no_grad()
    def _update_averages(self, x: Tensor, embed_ind: Tensor) -> None:
        counts, sums = ops.code_statistics(x, embed_ind, self.n_embed)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        # The operators take codes as rows, as in `forward`.
        embed_avg, embed = self.embed_avg.t().contiguous(), self.embed.t().contiguous()  # [K, D]
        ops.ema_update_(counts, sums, self.cluster_size, embed_avg, embed, self.decay, self.eps)
        self.embed_avg.copy_(embed_avg.t())
        self.embed.copy_(embed.t())


class ResBlock(nn.Module):
    """`conv1x1(ReLU(conv3x3(ReLU(x)))) + x` at any size; with `rectified_skip`, `... + ReLU(x)`."""

    rectified_skip = False

    def __init__(self, in_channel: int, channel: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.ReLU(),  # not in place: x is added at the end
            nn.Conv2d(in_channel, channel, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channel, in_channel, 1),
        )

    def forward(self, input: Tensor) -> Tensor:
        if self.rectified_skip:
            input = input.relu()
        result: Tensor = self.conv(input) + input
        return result


class Encoder(nn.Module):
    """Image or features `[B, in_channel, H, W]` -> `[B, channel, H/stride, W/stride]`."""

    def __init__(
        self, in_channel: int, channel: int, n_res_block: int, n_res_channel: int, stride: int
    ) -> None:
        super().__init__()
        half = channel // 2
        if stride == 4:
            blocks: list[nn.Module] = [
                nn.Conv2d(in_channel, half, 4, stride=2, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(half, channel, 4, stride=2, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(channel, channel, 3, padding=1),
            ]
        elif stride == 2:
            blocks = [
                nn.Conv2d(in_channel, half, 4, stride=2, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(half, channel, 3, padding=1),
            ]
        else:
            raise ValueError(f"expected stride 2 or 4, got {stride}.")
        # No ReLU before the first residual block: it starts with one of its own.
        blocks += [ResBlock(channel, n_res_channel) for _ in range(n_res_block)]
        self.blocks = nn.Sequential(*blocks, nn.ReLU(inplace=True))

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.blocks(input)
        return result


class Decoder(nn.Module):
    """Codes `[B, in_channel, h, w]` -> `[B, out_channel, h·stride, w·stride]`."""

    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        channel: int,
        n_res_block: int,
        n_res_channel: int,
        stride: int,
    ) -> None:
        super().__init__()
        if stride not in (2, 4):
            raise ValueError(f"expected stride 2 or 4, got {stride}.")
        blocks: list[nn.Module] = [nn.Conv2d(in_channel, channel, 3, padding=1)]
        blocks += [ResBlock(channel, n_res_channel) for _ in range(n_res_block)]
        blocks.append(nn.ReLU(inplace=True))
        if stride == 4:
            blocks += [
                nn.ConvTranspose2d(channel, channel // 2, 4, stride=2, padding=1),
                nn.ReLU(inplace=True),
                nn.ConvTranspose2d(channel // 2, out_channel, 4, stride=2, padding=1),
            ]
        else:
            blocks.append(nn.ConvTranspose2d(channel, out_channel, 4, stride=2, padding=1))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.blocks(input)
        return result


class VQVAE(LoadsPortFiles, nn.Module):
    """The port's VQ-VAE-2: maps of H/8 × W/8 (top) and H/4 × W/4 (bottom) codes.

    With one level there is only the bottom. With three, a middle level lies between the two, its
    modules named with `_m`, the top is H/16 × W/16, and each level sees all that are coarser: the
    port's wiring once more. Methods then take and return one or three maps where two are named.

    Args:
        in_channel: Channels of the images.
        channel: Channels of the encoders and decoders.
        n_res_block, n_res_channel: Residual blocks of each, and the channels inside one.
        embed_dim: D.
        n_embed: K.
        decay: Ignored, as in the port: all quantisers use 0.99.
        rectified_skip: Residual blocks add ReLU(x) instead of x to their result, as the port's did
            until 2021-01-23: their first ReLU worked in place. Models that were trained before that
            day, the published `vqvae_560.pt` among them, need it. It can be set later too.
        n_level: 1, 2 as in the port, or 3.
    """

    enc_b: Encoder
    quantize_b: Quantize
    dec: Decoder

    def __init__(
        self,
        in_channel: int = 3,
        channel: int = 128,
        n_res_block: int = 2,
        n_res_channel: int = 32,
        embed_dim: int = 64,
        n_embed: int = 512,
        decay: float = 0.99,
        rectified_skip: bool = False,
        n_level: int = 2,
    ) -> None:
        super().__init__()
        if n_level not in LEVELS:
            raise ValueError(f"expected n_level 1, 2 or 3, got {n_level!r}.")
        self.levels = LEVELS[n_level]
        residual = (n_res_block, n_res_channel)
        self.enc_b = Encoder(in_channel, channel, *residual, stride=4)
        for name in self.levels[-2::-1]:
            self.add_module(f"enc_{name}", Encoder(channel, channel, *residual, stride=2))
        for index, name in enumerate(self.levels):
            given = channel + (embed_dim if index else 0)
            self.add_module(f"quantize_conv_{name}", nn.Conv2d(given, embed_dim, 1))
            self.add_module(f"quantize_{name}", Quantize(embed_dim, n_embed))
            if name != "b":
                context = (index + 1) * embed_dim
                decoder = Decoder(context, embed_dim, channel, *residual, stride=2)
                self.add_module(f"dec_{name}", decoder)
        for index, name in enumerate(self.levels[:-1]):
            context = (index + 1) * embed_dim
            upsample = nn.ConvTranspose2d(context, context, 4, stride=2, padding=1)
            self.add_module(f"upsample_{name}", upsample)
        self.dec = Decoder(n_level * embed_dim, in_channel, channel, *residual, stride=4)
        self.rectified_skip = rectified_skip

    @property
    def rectified_skip(self) -> bool:
        """Whether the residual blocks add ReLU(x) instead of x."""
        return self._rectified_skip

    @rectified_skip.setter
    def rectified_skip(self, value: bool) -> None:
        self._rectified_skip = value
        for module in self.modules():
            if isinstance(module, ResBlock):
                module.rectified_skip = value

    def _module(self, kind: str, level: str) -> Any:
        return getattr(self, f"{kind}_{level}")

    def _extended(self, quants: Sequence[Tensor]) -> Tensor:
        """What the levels so far give, at the size of the last: `[B, n·D, h, w]`."""
        context = quants[0]
        for name, quant in zip(self.levels, quants[1:], strict=False):
            context = torch.cat([self._module("upsample", name)(context), quant], 1)
        return context

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, C, H, W]` in [-1, 1] -> reconstruction (not clamped) and diff `(1,)`."""
        levels = len(self.levels)
        encoded = self.encode(input)
        return self.decode(*encoded[:levels]), encoded[levels]

    def encode(self, input: Tensor) -> tuple[Tensor, ...]:
        """Quantise all levels.

        Args:
            input: `[B, C, H, W]`; H and W are multiples of 8 (of 4 and 16 with one and three
                levels).

        Returns:
            quant_t `[B, D, H/8, W/8]`, quant_b `[B, D, H/4, W/4]`, diff `(1,)`,
            id_t int64 `[B, H/8, W/8]`, id_b int64 `[B, H/4, W/4]`.

        Raises:
            ValueError: input is not such a batch.
        """
        in_channel = _in_channel(self.enc_b)
        if input.dim() != 4 or input.shape[1] != in_channel:
            raise ValueError(f"expected images [B, {in_channel}, H, W], got {list(input.shape)}.")
        height, width = input.shape[2:]
        stride = 2 << len(self.levels)
        if height == 0 or width == 0 or height % stride or width % stride:
            raise ValueError(
                f"expected H and W to be multiples of {stride} (stride 4, then 2), got "
                f"{height}×{width}. Resize or pad to {_round_up(height, stride)}×"
                f"{_round_up(width, stride)}."
            )
        features = []
        for name in self.levels[::-1]:
            input = self._module("enc", name)(input)
            features.append(input)

        quants: list[Tensor] = []
        ids: list[Tensor] = []
        diffs: list[Tensor] = []
        for index, name in enumerate(self.levels):
            vectors = features.pop()
            if index:
                coarser = self._module("dec", self.levels[index - 1])(self._extended(quants))
                vectors = torch.cat([coarser, vectors], 1)
            vectors = self._module("quantize_conv", name)(vectors).permute(0, 2, 3, 1)
            quant, diff, codes = self._module("quantize", name)(vectors)
            quants.append(quant.permute(0, 3, 1, 2))  # [B, D, h, w]
            diffs.append(diff.unsqueeze(0))
            ids.append(codes)
        return *quants, functools.reduce(torch.add, diffs), *ids

    def _in_order(
        self, kind: str, maps: Sequence[Tensor], named: dict[str, Tensor]
    ) -> list[Tensor]:
        """Maps coarse to fine that were given by place or by a name such as `code_t`."""
        names = [f"{kind}_{level}" for level in self.levels]
        if len(maps) + len(named) != len(names) or not named.keys() <= set(names[len(maps) :]):
            got = f"{len(maps)} maps" + "".join(f", {name}" for name in named)
            raise TypeError(f"expected {', '.join(names)}, got {got}.")
        return [*maps, *(named[name] for name in names[len(maps) :])]

    def decode(self, *quants: Tensor, **named: Tensor) -> Tensor:
        """quant_t `[B, D, h, w]` and quant_b `[B, D, 2h, 2w]` -> images `[B, C, 8h, 8w]`."""
        images: Tensor = self.dec(self._extended(self._in_order("quant", quants, named)))
        return images

    def decode_code(self, *codes: Tensor, **named: Tensor) -> Tensor:
        """Code maps int64 `[B, h, w]` and `[B, 2h, 2w]`, code_t and code_b -> images
        `[B, C, 8h, 8w]`."""
        maps = self._in_order("code", codes, named)
        shapes = [tuple(each.shape) for each in maps]
        batch, *sides = shapes[0] or (0,)
        expected = [(batch, *(side << i for side in sides)) for i in range(len(self.levels))]
        if len(sides) != 2 or shapes != expected:
            names = " and ".join(f"code_{name}" for name in self.levels)
            raise ValueError(
                f"expected {names} [B, h, w], each with twice the height and "
                f"width of the one before, got {shapes}."
            )
        for name, each in zip(self.levels, maps, strict=True):
            check_indices(each, self.quantize_b.n_embed, f"code_{name}")
        return self.decode(
            *(
                self._module("quantize", name).embed_code(each).permute(0, 3, 1, 2)  # [B, D, h, w]
                for name, each in zip(self.levels, maps, strict=True)
            )
        )

    @staticmethod
    def arguments_of(state_dict: dict[str, Tensor]) -> dict[str, Any]:
        """The constructor arguments that fit a state dict of this class, read off its shapes."""
        weight = state_dict["enc_b.blocks.0.weight"]
        dim, n_embed = state_dict["quantize_b.embed"].shape
        residual = [key for key in state_dict if key.startswith("enc_b.blocks.")]
        residual = [key for key in residual if key.endswith("conv.1.weight")]
        arguments = {
            "in_channel": weight.shape[1],
            "channel": state_dict["enc_b.blocks.4.weight"].shape[0],
            "n_res_block": len(residual),
            # Without residual blocks the file does not say; the argument then has no effect.
            "n_res_channel": state_dict[residual[0]].shape[0] if residual else 32,
            "embed_dim": dim,
            "n_embed": n_embed,
        }
        levels = sum(f"quantize_conv_{name}.weight" in state_dict for name in LEVELS[3])
        return arguments if levels == 2 else {**arguments, "n_level": levels}


def _in_channel(encoder: Encoder) -> int:
    first = encoder.blocks[0]
    assert isinstance(first, nn.Conv2d)
    return first.in_channels


def _round_up(size: int, stride: int) -> int:
    return max(1, -(-size // stride)) * stride
