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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.compat.rosinality.checkpoint import LoadsPortFiles

__all__ = ["VQVAE", "Decoder", "Encoder", "Quantize", "ResBlock"]


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
            diff: mean((sg[q] - x)²), 0-d.
            embed_ind: int64, `[...]`.

        Raises:
            ValueError: The last size of input is not D.
        """
        if input.dim() == 0 or input.shape[-1] != self.dim:
            raise ValueError(
                f"Quantize: expected input [..., D] with D={self.dim}, got {list(input.shape)}. "
                "Images are NCHW: permute(0, 2, 3, 1) first."
            )
        x = input.to(self.embed.dtype)
        # The operators take codes as rows; the copy is K·D values.
        codebook = self.embed.t().contiguous()  # [K, D]
        rows, embed_ind, diff = ops.vector_quantize(x, codebook)
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
        averages = (self.cluster_size, self.embed_avg.t(), self.embed.t())
        ops.ema_update_(counts, sums, *averages, self.decay, self.eps)


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
            raise ValueError(f"Encoder: expected stride 2 or 4, got {stride}.")
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
            raise ValueError(f"Decoder: expected stride 2 or 4, got {stride}.")
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
    """The port's two-level VQ-VAE-2: maps of H/8 × W/8 (top) and H/4 × W/4 (bottom) codes.

    Args:
        in_channel: Channels of the images.
        channel: Channels of the encoders and decoders.
        n_res_block, n_res_channel: Residual blocks of each, and the channels inside one.
        embed_dim: D.
        n_embed: K.
        decay: Ignored, as in the port: both quantisers use 0.99.
        rectified_skip: Residual blocks add ReLU(x) instead of x to their result, as the port's did
            until 2021-01-23: their first ReLU worked in place. Models that were trained before that
            day, the published `vqvae_560.pt` among them, need it. It can be set later too.
    """

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
    ) -> None:
        super().__init__()
        residual = (n_res_block, n_res_channel)
        self.enc_b = Encoder(in_channel, channel, *residual, stride=4)
        self.enc_t = Encoder(channel, channel, *residual, stride=2)
        self.quantize_conv_t = nn.Conv2d(channel, embed_dim, 1)
        self.quantize_t = Quantize(embed_dim, n_embed)
        self.dec_t = Decoder(embed_dim, embed_dim, channel, *residual, stride=2)
        self.quantize_conv_b = nn.Conv2d(embed_dim + channel, embed_dim, 1)
        self.quantize_b = Quantize(embed_dim, n_embed)
        self.upsample_t = nn.ConvTranspose2d(embed_dim, embed_dim, 4, stride=2, padding=1)
        self.dec = Decoder(embed_dim + embed_dim, in_channel, channel, *residual, stride=4)
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

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, C, H, W]` in [-1, 1] -> reconstruction (not clamped) and diff `(1,)`."""
        quant_t, quant_b, diff, _, _ = self.encode(input)
        return self.decode(quant_t, quant_b), diff

    def encode(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Quantise both levels.

        Args:
            input: `[B, C, H, W]`; H and W are multiples of 8.

        Returns:
            quant_t `[B, D, H/8, W/8]`, quant_b `[B, D, H/4, W/4]`, diff `(1,)`,
            id_t int64 `[B, H/8, W/8]`, id_b int64 `[B, H/4, W/4]`.

        Raises:
            ValueError: input is not such a batch.
        """
        in_channel = _in_channel(self.enc_b)
        if input.dim() != 4 or input.shape[1] != in_channel:
            raise ValueError(
                f"VQVAE: expected images [B, {in_channel}, H, W], got {list(input.shape)}."
            )
        height, width = input.shape[2:]
        if height < 8 or width < 8 or height % 8 or width % 8:
            raise ValueError(
                "VQVAE: expected H and W to be multiples of 8 (stride 4, then 2), got "
                f"{height}×{width}. Resize or pad to {_round_up(height)}×{_round_up(width)}."
            )
        enc_b = self.enc_b(input)
        enc_t = self.enc_t(enc_b)

        quant_t, diff_t, id_t = self.quantize_t(self.quantize_conv_t(enc_t).permute(0, 2, 3, 1))
        quant_t = quant_t.permute(0, 3, 1, 2)  # [B, D, H/8, W/8]

        enc_b = torch.cat([self.dec_t(quant_t), enc_b], 1)
        quant_b, diff_b, id_b = self.quantize_b(self.quantize_conv_b(enc_b).permute(0, 2, 3, 1))
        quant_b = quant_b.permute(0, 3, 1, 2)  # [B, D, H/4, W/4]
        return quant_t, quant_b, diff_t.unsqueeze(0) + diff_b.unsqueeze(0), id_t, id_b

    def decode(self, quant_t: Tensor, quant_b: Tensor) -> Tensor:
        """quant_t `[B, D, h, w]` and quant_b `[B, D, 2h, 2w]` -> images `[B, C, 8h, 8w]`."""
        images: Tensor = self.dec(torch.cat([self.upsample_t(quant_t), quant_b], 1))
        return images

    def decode_code(self, code_t: Tensor, code_b: Tensor) -> Tensor:
        """Code maps int64 `[B, h, w]` and `[B, 2h, 2w]` -> images `[B, C, 8h, 8w]`."""
        height, width = code_t.shape[1:]
        if code_b.shape != (code_t.shape[0], 2 * height, 2 * width):
            raise ValueError(
                "VQVAE.decode_code: expected code_b [B, 2h, 2w] for code_t [B, h, w], got "
                f"{list(code_b.shape)} for {list(code_t.shape)}."
            )
        quant_t = self.quantize_t.embed_code(code_t).permute(0, 3, 1, 2)  # [B, D, h, w]
        quant_b = self.quantize_b.embed_code(code_b).permute(0, 3, 1, 2)  # [B, D, 2h, 2w]
        return self.decode(quant_t, quant_b)

    @staticmethod
    def arguments_of(state_dict: dict[str, Tensor]) -> dict[str, Any]:
        """The constructor arguments that fit a state dict of this class, read off its shapes."""
        weight = state_dict["enc_b.blocks.0.weight"]
        dim, n_embed = state_dict["quantize_t.embed"].shape
        residual = [key for key in state_dict if key.startswith("enc_t.blocks.")]
        residual = [key for key in residual if key.endswith("conv.1.weight")]
        return {
            "in_channel": weight.shape[1],
            "channel": state_dict["enc_b.blocks.4.weight"].shape[0],
            "n_res_block": len(residual),
            # Without residual blocks the file does not say; the argument then has no effect.
            "n_res_channel": state_dict[residual[0]].shape[0] if residual else 32,
            "embed_dim": dim,
            "n_embed": n_embed,
        }


def _in_channel(encoder: Encoder) -> int:
    first = encoder.blocks[0]
    assert isinstance(first, nn.Conv2d)
    return first.in_channels


def _round_up(size: int) -> int:
    return -(-size // 8) * 8
