"""Quantisers of the parts of a vector, each part on its own.

Sizes: G groups or heads, Q quantisers, K codes, D embedding_dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.index_range import check_columns, check_indices, check_integers
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_joint,
    check_mask,
    check_vectors,
    checked_prefix,
    join_codes,
    may_keep_tensors,
    split_codes,
    with_masked,
)
from vqvae2_fast.modules.residual_vq import ResidualVQ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.ops._batch_part import BatchPart

__all__ = ["GroupedResidualVQ", "MultiHeadVQ"]


class _Parts(Quantizer):
    """Equal parts of a vector, `[..., D/G]` each, with a quantiser of their own or one for all."""

    def __init__(
        self,
        parts: Sequence[Quantizer],
        groups: int,
        embedding_dim: int,
        sizes: tuple[int, ...],
        joint_code: bool,
    ) -> None:
        super().__init__()
        if joint_code:
            check_joint(sizes * groups)
        self.embedding_dim = embedding_dim
        self.groups = groups
        self.sizes = sizes
        self.joint_code = joint_code
        self.parts = nn.ModuleList(parts)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, joint_code={self.joint_code}"

    def _own(self) -> list[Quantizer]:
        return [cast("Quantizer", part) for part in self.parts]

    def _split(self, z: Tensor) -> Sequence[Tensor]:
        """What each of `parts` takes: `[..., D/G]`, or of all groups `[..., G, D/G]`."""
        check_vectors(z, self.embedding_dim)
        dim = self.embedding_dim // self.groups
        if len(self.parts) == 1:
            return [z.unflatten(-1, (self.groups, dim))]
        return z.split(dim, dim=-1)

    def _gather(self, indices: list[Tensor]) -> Tensor:
        """Indices `[..., G]`, or `[..., G, Q]`, or joint `[...]`, from those of the parts."""
        own = indices[0]
        # One quantiser for all groups has their dimension already.
        each = own if len(self.parts) == 1 else torch.stack(indices, dim=self._group_dim)
        if not self.joint_code:
            return each
        flat = each.flatten(self._group_dim)
        return join_codes(flat, self.sizes * self.groups)

    # Position of the groups' dimension among those of indices.
    _group_dim = -1

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating.
            mask: bool `[...]`, True for the vectors that count, as of `VectorQuantizerEMA`.

        Returns:
            z_q: `[..., D]`, z's dtype.
            indices: int64, of each group; with joint_code one number, `[...]`.
            loss: float32, 0-d: the mean over groups.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating; mask is not
                `[...]` or not bool.
        """
        split = self._split(z)
        check_mask(mask, z)
        if mask is None or len(split) > 1:
            each = mask
        else:  # one quantiser takes the groups of a vector beside each other
            each = mask[..., None].expand(split[0].shape[:-1])
        with without_autocast(z.device):
            results = [part(x, each) for part, x in zip(self._own(), split, strict=True)]
            rows, indices, losses = (list(values) for values in zip(*results, strict=True))
            z_q = rows[0].flatten(-2) if len(rows) == 1 else torch.cat(rows, dim=-1)
        if may_keep_tensors():
            self.perplexity = torch.stack([part.perplexity for part in self._own()]).mean()
        # Parts give −1 where the mask is False, but a joint code of such digits is not −1.
        return *with_masked(z_q, self._gather(indices), z, mask), torch.stack(losses).mean()

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        each = zip(self._own(), self._split(z), strict=True)
        return self._gather([part.encode(x) for part, x in each])

    def lookup(self, indices: Tensor) -> Tensor:
        check_integers("indices", indices)
        if self.joint_code:
            end = math.prod(self.sizes) ** self.groups
            check_indices(indices, end)
            indices = split_codes(indices, self.sizes * self.groups)  # [..., G·Q]
            if self._group_dim == -2:
                indices = indices.unflatten(-1, (self.groups, len(self.sizes)))
        else:
            columns = (self.groups, len(self.sizes))[: -self._group_dim]
            check_columns(indices, *columns, or_fewer=self._group_dim == -2)
        if len(self.parts) == 1:
            return self._own()[0].lookup(indices).flatten(-2)
        own = zip(self._own(), indices.unbind(self._group_dim), strict=True)
        rows = [part.lookup(index) for part, index in own]
        with without_autocast(indices.device):
            return torch.cat(rows, dim=-1)

    def must_start(self) -> bool:
        return any(part.must_start() for part in self._own())

    def start_(self, vectors: list[Tensor], parts: list[BatchPart]) -> None:
        split = [self._split(z) for z in vectors]
        for number, part in enumerate(self._own()):
            part.start_([x[number] for x in split], parts)


def _check_groups(argument: str, groups: int, embedding_dim: int) -> None:
    if groups < 1 or embedding_dim % groups:
        raise ValueError(
            f"expected {argument} to divide embedding_dim={embedding_dim}, got {groups}."
        )


class GroupedResidualVQ(_Parts):
    """A `ResidualVQ` for each of G equal parts of a vector (https://arxiv.org/abs/2305.02765).

    Args:
        groups: G, which divides D.
        num_embeddings, num_quantizers, quantizer_dropout and others: As of `ResidualVQ`, of each
            group. All groups drop the same quantisers.
        embedding_dim: D.
        joint_code: Return one index of a vector instead of G·Q; group 0 varies fastest.

    Raises:
        ValueError: G does not divide D, or as `ResidualVQ`.

    Note:
        Indices are `[..., G, Q]`; `lookup` also takes the first q of each group, `[..., G, q]`.
    """

    _group_dim = -2

    def __init__(
        self,
        groups: int,
        num_embeddings: int | Sequence[int],
        embedding_dim: int,
        num_quantizers: int | None = None,
        joint_code: bool = False,
        stream: int = 0,
        **others: Any,
    ) -> None:
        _check_groups("groups", groups, embedding_dim)
        parts, next_stream = [], stream
        for _ in range(groups):
            part = ResidualVQ(
                num_embeddings,
                embedding_dim // groups,
                num_quantizers,
                stream=next_stream,
                **others,
            )
            next_stream += len(part.sizes) << 8
            parts.append(part)
        super().__init__(parts, groups, embedding_dim, parts[0].sizes, joint_code)

    @torch.no_grad()
    def encode(self, z: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Only the indices, int64 `[..., G, Q]`, or of the first: see `ResidualVQ.encode`."""
        first = checked_prefix(num_quantizers, self.sizes, self.joint_code)
        own = zip(self._own(), self._split(z), strict=True)
        return self._gather([cast("ResidualVQ", part).encode(x, first) for part, x in own])


class MultiHeadVQ(_Parts):
    """A nearest code for each of G equal parts of a vector: product quantisation.

    Args:
        heads: G, which divides D.
        num_embeddings: K of each head.
        embedding_dim: D.
        shared_codebook: All heads use one codebook.
        joint_code: Return one index of a vector instead of G; head 0 varies fastest.
        others: As of `VectorQuantizerEMA`, of each codebook; metric "cosine" makes each part of z_q
            a vector of length one.

    Raises:
        ValueError: G does not divide D, a joint code beyond 62 bits, or as `VectorQuantizerEMA`.

    Note:
        Indices are `[..., G]`.
    """

    def __init__(
        self,
        heads: int,
        num_embeddings: int,
        embedding_dim: int,
        shared_codebook: bool = False,
        joint_code: bool = False,
        stream: int = 0,
        **others: Any,
    ) -> None:
        _check_groups("heads", heads, embedding_dim)
        parts = [
            VectorQuantizerEMA(
                num_embeddings, embedding_dim // heads, stream=stream + (head << 8), **others
            )
            for head in range(1 if shared_codebook else heads)
        ]
        super().__init__(parts, heads, embedding_dim, (num_embeddings,), joint_code)
