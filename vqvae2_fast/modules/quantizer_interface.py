"""What every quantiser offers, and codes of several parts as one number.

Sizes: K codes, D embedding_dim, Q parts of a code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.console import words
from vqvae2_fast.console.tables import html_summary
from vqvae2_fast.files.kinds import check_fields, number, one_of
from vqvae2_fast.ops._checks import check_tensor, checked_integer, dtype_name
from vqvae2_fast.ops._registry import transforms_are_active
from vqvae2_fast.ops.patch_conv2d.op import linear_in_one_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.ops._batch_part import BatchPart

__all__ = [
    "Quantizer",
    "check_codebook_fields",
    "check_joint",
    "check_mask",
    "check_vectors",
    "checked_prefix",
    "digits_of",
    "filled",
    "in_words",
    "join_codes",
    "linear_of",
    "masked_mean_square",
    "may_keep_tensors",
    "mean_square_error",
    "perplexity",
    "perplexity_of",
    "projected",
    "projections",
    "split_codes",
    "wide",
    "with_masked",
]


def projections(
    embedding_dim: int, code_dim: int, bias: bool = True
) -> tuple[nn.Module, nn.Module]:
    """Linear layers to the numbers of a code and back, or identities where the sizes are equal."""
    if embedding_dim == code_dim:
        return nn.Identity(), nn.Identity()
    return (
        nn.Linear(embedding_dim, code_dim, bias=bias),
        nn.Linear(code_dim, embedding_dim, bias=bias),
    )


def projected(layer: nn.Module, x: Tensor) -> Tensor:
    """x through one of the layers in the type of its weight; through an identity as it is."""
    weight = getattr(layer, "weight", None)
    out: Tensor = layer(x if weight is None else x.to(weight.dtype))
    return out


def linear_of(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, in evaluation with the same bits in any batch and on any number of threads.

    A training forward takes PyTorch's product, which is faster, and so does a layer that was
    replaced or has hooks.
    """
    altered = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
    learns = layer.training and torch.is_grad_enabled()
    if isinstance(layer, nn.Linear) and type(layer) is nn.Linear and not (altered or learns):
        return linear_in_one_order(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out


def digits_of(layer: nn.Module, z: Tensor) -> Tensor:
    """The numbers whose rounding or signs are a code, `[..., d]`: z through `project_in`."""
    weight = getattr(layer, "weight", None)
    return wide(linear_of(layer, z if weight is None else z.to(weight.dtype)))


def wide(z: Tensor) -> Tensor:
    """z as quantisers compute with it: float64 as it is, every other dtype as float32."""
    return z if z.dtype == torch.float64 else z.float()


_LARGEST_JOINT = 2**62
# Beyond it a count for each code takes longer than sorting the codes of a batch.
_LARGEST_TABLE = 2**20


class Quantizer(nn.Module):
    """z `[..., D]` -> z_q `[..., D]`, indices int64 `[...]` (or `[..., Q]`), loss float32 0-d.

    `forward(z, mask=...)` with a bool mask `[...]` counts only the vectors where it is True. The
    others come back as they are, with index −1; nothing is learnt from them.

    Attributes:
        embedding_dim: D.
        perplexity: exp(entropy) of the codes of this process's latest forward outside of transforms
            of `torch.func`, float32 0-d.
    """

    embedding_dim: int
    num_embeddings: int
    perplexity: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.perplexity = torch.ones((), dtype=torch.float32, device="cpu")

    def note_use(self, indices: Tensor, *sizes: int) -> None:
        """Keep the perplexity of a forward's indices: of `[..., Q]` the mean over the parts.

        Args:
            sizes: K of each part, or none for the `num_embeddings` of `[...]`.
        """
        if not may_keep_tensors():
            return
        if sizes:
            each = map(perplexity_of, indices.unbind(-1), sizes)
            self.perplexity = torch.stack(list(each)).mean()
        else:
            self.perplexity = perplexity_of(indices, self.num_embeddings)

    def encode(self, z: Tensor) -> Tensor:
        """Only the indices; nothing is learnt from z in either mode."""
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """The vectors `[..., D]` of indices as `forward` returns them.

        Raises:
            ValueError: An index is not one of the quantiser's. On a GPU this is an assertion on the
                device; compiled graphs do not check.
        """
        raise NotImplementedError

    def perplexity_in_training(self) -> Tensor | None:
        """exp(entropy) of the counts that training has averaged, float32 0-d; None without them."""
        return None

    def _repr_html_(self) -> str:
        """What a notebook shows: how evenly the codes are used, of all parts and of each."""
        rows = [
            [
                name,
                " × ".join(f"{size:,}" for size in _sizes_of(part)),
                f"{part.embedding_dim}",
                # Parts may learn from statistics of the whole, and see no batch themselves.
                in_words(part.perplexity if part is self else None),
                in_words(part.perplexity_in_training()),
            ]
            for name, part in self.named_modules()
            if isinstance(part, Quantizer)
        ]
        header = ("", "codes", "dimension", "perplexity, latest batch", "perplexity in training")
        return html_summary(type(self).__name__, header, rows)

    def must_start(self) -> bool:
        """Whether the next training forward starts a codebook by k-means."""
        return False

    def start_(self, vectors: list[Tensor], parts: list[BatchPart]) -> None:
        """Start codebooks by k-means from several parts of a batch, z `[B, ..., D]` each."""


def may_keep_tensors() -> bool:
    """Whether a module may keep tensors of this call. Those of transforms of `torch.func` end with
    the transform, and an exported program keeps nothing of its calls."""
    if torch.compiler.is_exporting():
        return False
    return torch.compiler.is_compiling() or not transforms_are_active()


def in_words(value: Tensor | None) -> str:
    """A 0-d tensor for people, in three digits; "" for none. Waits for a GPU."""
    return "" if value is None or value.is_meta else words.number(float(value), 3)


def _sizes_of(quantizer: Quantizer) -> Sequence[int]:
    """K of each part of a code."""
    own = getattr(quantizer, "sizes", None)
    return own if own is not None else [getattr(quantizer, "num_embeddings", 0)]


def check_vectors(z: Tensor, dim: int) -> None:
    """Raise ValueError unless z is `[..., D]`, TypeError unless it is a floating tensor."""
    check_tensor("z", z)
    if z.dim() == 0 or z.shape[-1] != dim:
        remedy = " Permute images to channels last." if z.dim() > 1 and z.shape[1] == dim else ""
        raise ValueError(
            f"expected z [..., D] with channels last and D={dim}, got {list(z.shape)}.{remedy}"
        )
    if not z.is_floating_point():
        raise TypeError(f"expected a floating z, got {dtype_name(z.dtype)}.")


def check_mask(mask: Tensor | None, z: Tensor) -> None:
    """Raise ValueError unless mask is of z's shape `[..., D]` without D, TypeError unless bool."""
    if mask is None:
        return
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"expected mask bool, got {dtype_name(mask.dtype)}: pass mask.bool().")
    if mask.shape != z.shape[:-1]:
        expected = list(z.shape[:-1])
        raise ValueError(f"expected mask {expected} for z {list(z.shape)}, got {list(mask.shape)}.")


def filled(z: Tensor, mask: Tensor | None) -> Tensor:
    """z `[..., D]` with zeros where mask `[...]` is False: what stands there may be anything."""
    return z if mask is None else z.masked_fill(~mask[..., None], 0.0)


def with_masked(
    z_q: Tensor, indices: Tensor, given: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """z_q and indices of a forward, but what was given and −1 where mask `[...]` is False.

    Args:
        indices: `[...]`, or with more sizes for the parts of a code.
    """
    if mask is None:
        return z_q, indices
    counts = mask.reshape(mask.shape + (1,) * (indices.dim() - mask.dim()))
    return torch.where(mask[..., None], z_q, given), indices.masked_fill(~counts, -1)


def check_codebook_fields(quantizer: Quantizer) -> None:
    """Raise ValueError unless K, D, commitment_cost and gradient are those of a codebook."""
    checked_integer("num_embeddings", quantizer.num_embeddings, 1)
    checked_integer("embedding_dim", quantizer.embedding_dim, 1)
    check_fields(
        quantizer,
        commitment_cost=number(0),
        gradient=one_of(("straight_through", "rotation")),
    )


def check_joint(sizes: Sequence[int]) -> None:
    """Raise ValueError if the parts have too many codes together for one int64."""
    if math.prod(sizes) > _LARGEST_JOINT:
        raise ValueError(
            "expected sizes whose product fits 62 bits for a joint code, got "
            f"{list(sizes)}. Leave joint_code out: then each part has an index of its own."
        )


def checked_prefix(num_quantizers: int | None, sizes: Sequence[int], joint_code: bool) -> int:
    """How many quantisers `encode(z, num_quantizers=...)` uses; all of them without a number."""
    if num_quantizers is None:
        return len(sizes)
    if joint_code:
        raise ValueError(
            f"expected num_quantizers=None with joint_code=True, got {num_quantizers}: a joint "
            "code does not tell how many parts it has. Leave joint_code out."
        )
    return checked_integer("num_quantizers", num_quantizers, 1, len(sizes))


def join_codes(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """One number for a code of Q parts: Σ_q i_q · Π_{p<q} K_p.

    Args:
        indices: int64 `[..., Q]`.
        sizes: K_q of each part; the first part varies fastest.

    Returns:
        int64 `[...]`.
    """
    joint, place = torch.zeros_like(indices[..., 0]), 1
    for part, size in zip(indices.unbind(-1), sizes, strict=True):
        joint = joint + part * place
        place *= size
    return joint


def split_codes(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """The parts of joint codes, int64 `[...]` -> `[..., Q]`; the inverse of `join_codes`."""
    parts = []
    for size in sizes:
        parts.append(codes % size)
        codes = codes.div(size, rounding_mode="floor")
    return torch.stack(parts, dim=-1)


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of the use of codes, float32 0-d: K if all are used alike, 1 if only one is.

    This is the formula of sonnet's `VectorQuantizerEMA`. Without any vectors it is 1.
    """
    total = counts.sum()
    share = counts.float() / torch.where(total > 0, total, 1)  # [K]
    return torch.exp(-torch.sum(share * torch.log(share + 1e-10)))


def perplexity_of(indices: Tensor, num_embeddings: int) -> Tensor:
    """exp(entropy) of indices int64 `[...]` below K, float32 0-d; −1 counts for none."""
    flat = indices.flatten()
    if indices.is_meta:  # there are no values there to count
        return torch.ones((), dtype=torch.float32, device=indices.device)
    if num_embeddings > _LARGEST_TABLE:
        codes, counts = torch.unique(flat, return_counts=True)
        return perplexity(torch.where(codes >= 0, counts, 0))
    ones = (flat >= 0).float()
    return perplexity(ones.new_zeros(num_embeddings).index_add_(0, flat.clamp(min=0), ones))


def masked_mean_square(difference: Tensor, mask: Tensor) -> Tensor:
    """The mean square of vectors `[..., D]` where mask `[...]` is True, float32 0-d; 0 of none."""
    squares = filled(difference, mask).square().sum()
    return (squares / (mask.sum().clamp(min=1) * difference.shape[-1])).float()


def mean_square_error(numbers: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """`mse_loss` of vectors `[..., D]` where mask `[...]` is True; 0 where there are none."""
    if mask is not None:
        return masked_mean_square(numbers - values, mask)
    return F.mse_loss(numbers, values) if numbers.numel() else (numbers - values).sum()
