"""How much of a codebook its codes use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.data import codes_in_order
from vqvae2_fast.models.configs import level_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqvae2_fast.data import CodeStore

__all__ = ["CodebookUse", "code_counts", "codebook_use", "entropy_of_counts", "use_of_codes"]

_BATCH = 4096  # records


@dataclass(frozen=True)
class CodebookUse:
    """Codes that occur at all, their share of the codebook, and the perplexity of their use.

    Perplexity is 2 to the entropy of the histogram in bits: the size of the codebook if all codes
    are used equally, 1 if a single one is used (sonnet `vqvae.py`, `perplexity`).
    """

    used: int
    share: float
    perplexity: float

    @classmethod
    def of_counts(cls, counts: Tensor) -> CodebookUse:
        """From how often each code occurs, int64 `[K]`."""
        used = int((counts > 0).sum())
        return cls(used, used / len(counts), 2.0 ** entropy_of_counts(counts))


def code_counts(codes: Tensor | Iterable[Tensor], num_embeddings: int) -> Tensor:
    """How often each code occurs in codes int64, one tensor or many of any shapes: int64 `[K]`.

    Raises:
        ValueError: A code outside 0..K−1, or K below 1.
    """
    if num_embeddings < 1:
        raise ValueError(f"expected num_embeddings >= 1, got {num_embeddings}.")
    counts = torch.zeros(num_embeddings, dtype=torch.int64, device="cpu")
    for part in [codes] if isinstance(codes, Tensor) else codes:
        if not part.numel():
            continue
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= num_embeddings:
            raise ValueError(
                f"expected codes in 0..{num_embeddings - 1}, got values in {low}..{high}."
            )
        counts += torch.bincount(part.flatten(), minlength=num_embeddings).cpu()
    return counts


def entropy_of_counts(counts: Tensor) -> float:
    """Entropy in bits of a histogram, int64 `[K]`."""
    shares = counts[counts > 0].double() / counts.sum()
    return max(0.0, float(-(shares * shares.log2()).sum()))


def codebook_use(codes: Tensor | Iterable[Tensor], num_embeddings: int) -> CodebookUse:
    """Use of a codebook of `num_embeddings` by a set of codes int64, one tensor or many.

    Raises:
        ValueError: As `code_counts`.
    """
    return CodebookUse.of_counts(code_counts(codes, num_embeddings))


def use_of_codes(store: CodeStore) -> dict[str, CodebookUse]:
    """How much of its codebook each level of a store uses, by the level's name."""
    return {
        name: codebook_use(
            (maps[level] for maps, _ in codes_in_order(store, _BATCH)), store.num_embeddings
        )
        for level, name in enumerate(level_names(len(store.level_sizes)))
    }
