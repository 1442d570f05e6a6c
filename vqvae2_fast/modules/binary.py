"""Quantisers whose codes are signs: lookup-free and binary spherical quantisation.

Their entropies need no matrix of vectors by codes. A soft code of a vector is a product of d
independent bits: softmax over all 2^d corners c of −‖z − c‖²/τ, with c_i = ±s, is Π_i σ(±l_i),
l_i = 4·s·z_i/τ. So its entropy is a sum over bits, and the mean over vectors of such products is
one product of two matrices `[N, 2^(d/2)]`.

Sizes: N vectors, d bits, K = 2^d codes, D embedding_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.files.kinds import check_field, number
from vqvae2_fast.modules.batch import all_reduce_, is_distributed
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.index_range import check_indices
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_mask,
    check_vectors,
    digits_of,
    filled,
    mean_square_error,
    projected,
    projections,
    with_masked,
)
from vqvae2_fast.ops import sign_quantize

__all__ = [
    "BSQ",
    "LFQ",
    "bits_of",
    "entropy_of",
    "entropy_of_bits",
    "mean_of_codes",
    "mean_over_processes",
    "tables_of_bits",
]


def entropy_of_bits(logits: Tensor) -> Tensor:
    """Σ_i H(σ(l_i)), the entropy in nats of each soft code: `[..., d]` -> `[...]`."""
    # −p log p − q log q with p = σ(|l|): neither term cancels for a large |l|.
    size = logits.abs()
    return (F.softplus(-size) + size * torch.sigmoid(-size)).sum(-1)


def entropy_of(probabilities: Tensor, least: float = 1e-30) -> Tensor:
    """−p log p of each probability, in nats; the logarithm is of at least `least`.

    With it the derivative at 0 is finite.
    """
    return -probabilities * probabilities.clamp(min=least).log()


def tables_of_bits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Distributions over the upper ⌊d/2⌋ and the lower bits: `[N, d]` -> `[N, H]`, `[N, L]`.

    The first bit is the highest of a code's index, and p(code) is the product of the two.
    """
    ones, zeros = torch.sigmoid(logits), torch.sigmoid(-logits)
    middle = logits.shape[1] // 2
    high = _products(zeros[:, :middle], ones[:, :middle])
    return high, _products(zeros[:, middle:], ones[:, middle:])


def mean_of_codes(high: Tensor, low: Tensor, count: Tensor | int | None = None) -> Tensor:
    """The mean over vectors of their distributions over all codes: `tables_of_bits` -> `[2^d]`.

    Zeros if there are no vectors.

    Args:
        count: How many vectors these are, if not all; the rows of the others are zeros.
    """
    return (high.T @ low).flatten() / _at_least_one(len(high) if count is None else count)


def _counted(rows: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Rows `[N, n]` with zeros where mask `[...]` of N is False, and how many are left."""
    return (rows, len(rows)) if mask is None else (filled(rows, mask.flatten()), mask.sum())


def _at_least_one(count: Tensor | int) -> Tensor | int:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def _products(zeros: Tensor, ones: Tensor) -> Tensor:
    """Products over bits for each combination of them: two `[N, d]` -> `[N, 2^d]`."""
    table = ones.new_ones(len(ones), 1)
    for zero, one in zip(zeros.unbind(1), ones.unbind(1), strict=True):
        table = torch.stack([table * zero[:, None], table * one[:, None]], dim=2).flatten(1)
    return table


_LARGEST_LFQ = 2**18


def bits_of(indices: Tensor, num_bits: int) -> Tensor:
    """The bits of indices int64 `[...]`, the highest first: bool `[..., d]`."""
    places = 2 ** torch.arange(num_bits - 1, -1, -1, device=indices.device)
    return (indices[..., None] & places) != 0


def mean_over_processes(share: Tensor, count: Tensor | int) -> Tensor:
    """The mean over all processes' vectors, with this process's part of the gradient.

    DistributedDataParallel averages gradients over processes, so each gives its part as often as
    there are processes. All processes have to call it, also those without vectors.

    Args:
        share: The mean over this process's vectors, 1-d; zeros if it has none.
        count: How many vectors these are, an int or 0-d.
    """
    if not is_distributed():
        return share
    summed = torch.cat([share.detach() * count, share.new_ones(1) * count])
    all_reduce_(summed)
    total = summed[-1].clamp(min=1)
    weight = count * torch.distributed.get_world_size() / total
    return summed[:-1] / total + weight * (share - share.detach())


class _Signs(Quantizer):
    """What LFQ and BSQ share: signs of d numbers with a straight-through gradient."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int | None,
        commitment_cost: float,
        entropy_weight: float,
        diversity: float,
        temperature: float,
    ) -> None:
        super().__init__()
        bits = num_embeddings.bit_length() - 1
        if num_embeddings < 2 or num_embeddings != 1 << bits:
            raise ValueError(
                f"expected num_embeddings to be a power of two >= 2, got {num_embeddings}: "
                f"use {1 << max(1, (num_embeddings - 1).bit_length())}."
            )
        check_field("commitment_cost", commitment_cost, number(0))
        check_field("temperature", temperature, number(above=0))
        self.num_embeddings = num_embeddings
        self.num_bits = bits
        self.embedding_dim = bits if embedding_dim is None else embedding_dim
        self.commitment_cost = commitment_cost
        self.entropy_weight = entropy_weight
        self.diversity = diversity
        self.temperature = temperature
        self.project_in, self.project_out = projections(self.embedding_dim, bits)

    scale: float

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, embedding_dim={self.embedding_dim}"

    def _numbers(self, z: Tensor) -> Tensor:
        """The d numbers whose signs are the code, `[..., d]`."""
        return digits_of(self.project_in, z)

    def _entropy_of_use(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating; computed in float32, or in float64 if it is.
            mask: bool `[...]`, True for the vectors that count, as of `VectorQuantizerEMA`.

        Returns:
            z_q: `[..., D]`, z's dtype, straight-through.
            indices: int64 `[...]`, below K; the first number's sign is the highest bit.
            loss: float32, 0-d: commitment_cost × mean((u − code)²) of the d numbers u and, in
                training, entropy_weight × (mean H(code | u) − diversity × H(code)), in nats.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating; mask is not
                `[...]` or not bool.
        """
        check_vectors(z, self.embedding_dim)
        check_mask(mask, z)
        with without_autocast(z.device):
            numbers = self._numbers(filled(z, mask))
            values, indices = sign_quantize(numbers, self.scale)
            z_q = projected(self.project_out, values + (numbers - numbers.detach())).to(z.dtype)
            loss = self.commitment_cost * mean_square_error(numbers, values, mask)
            if self.training and self.entropy_weight:
                logits = numbers.reshape(-1, self.num_bits) * (4 * self.scale / self.temperature)
                certain, count = _counted(entropy_of_bits(logits)[:, None], mask)
                entropies = certain.sum() / _at_least_one(count)
                entropies = entropies - self.diversity * self._entropy_of_use(logits, mask)
                loss = loss + self.entropy_weight * entropies
        z_q, indices = with_masked(z_q, indices, z, mask)
        self.note_use(indices)
        return z_q, indices, loss.float()

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            return sign_quantize(self._numbers(z), self.scale)[1]

    def lookup(self, indices: Tensor) -> Tensor:
        check_indices(indices, 2**self.num_bits)
        weight = getattr(self.project_out, "weight", None)
        dtype = torch.float32 if weight is None else weight.dtype
        bits = bits_of(indices, self.num_bits)
        scale = torch.full_like(bits, self.scale, dtype=dtype)
        values = torch.where(bits, scale, -scale)
        with without_autocast(indices.device):
            return projected(self.project_out, values)


class LFQ(_Signs):
    """Lookup-free quantisation: a code is the signs of d = log₂K numbers, eqs. 3 to 5 of
    https://arxiv.org/abs/2310.05737.

    An entropy loss makes each code certain and all codes used. Its distribution over all K codes is
    computed exactly, by factors.

    Args:
        num_embeddings: K, a power of two, at most 2¹⁸: the entropy of use needs K numbers. BSQ
            takes more.
        embedding_dim: D; linear layers lead to the d numbers and back where it is not d. None is d.
        commitment_cost: Weight of mean((u − sg[code])²).
        entropy_weight: Weight of the entropy loss.
        diversity: Weight, inside it, of the entropy of the codes' use.
        temperature: τ of the soft codes, softmax(−‖u − c‖²/τ).

    Raises:
        ValueError: A number of codes that is no power of two or too large, a weight that is
            negative or infinite, or a temperature that is not above 0.

    Note:
        In a process group the use of codes is that of all processes.
    """

    scale = 1.0

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int | None = None,
        commitment_cost: float = 0.25,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 0.01,
    ) -> None:
        if num_embeddings > _LARGEST_LFQ:
            raise ValueError(
                f"expected num_embeddings <= {_LARGEST_LFQ}, got {num_embeddings}: use BSQ."
            )
        super().__init__(
            num_embeddings, embedding_dim, commitment_cost, entropy_weight, diversity, temperature
        )

    def _entropy_of_use(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        high, low = tables_of_bits(logits)
        high, count = _counted(high, mask)
        share = mean_of_codes(high, low, count)  # [K]
        return entropy_of(mean_over_processes(share, count)).sum()


class BSQ(_Signs):
    """Binary spherical quantisation: LFQ on the unit sphere, https://arxiv.org/abs/2406.07548.

    u = z/‖z‖ and the code is sign(u)/√d, so their distance is bounded. The entropy of use is taken
    bit by bit, as if bits were independent (section 3.2 there): its cost does not grow with K.

    Args:
        num_embeddings: K, a power of two, at most 2⁶².
        embedding_dim, commitment_cost, entropy_weight, diversity, temperature: As of `LFQ`.

    Raises:
        ValueError: As `LFQ`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int | None = None,
        commitment_cost: float = 0.25,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 0.01,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, commitment_cost, entropy_weight, diversity, temperature
        )
        self.scale = self.num_bits**-0.5

    def _numbers(self, z: Tensor) -> Tensor:
        return F.normalize(super()._numbers(z), dim=-1)

    def _entropy_of_use(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        ones, count = _counted(torch.sigmoid(logits), mask)
        share = mean_over_processes(ones.sum(0) / _at_least_one(count), count)  # [d]
        return (entropy_of(share) + entropy_of(1 - share)).sum()
