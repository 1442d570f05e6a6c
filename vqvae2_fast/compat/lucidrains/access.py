"""What `VectorQuantize` offers besides its forward: codes of indices, usage, updates by hand.

Letters: B batch, N positions, h heads, K codes, D codebook_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqvae2_fast.compat.lucidrains.layout import Layouts
from vqvae2_fast.modules.quantizer_interface import may_keep_tensors

if TYPE_CHECKING:
    from vqvae2_fast.compat.lucidrains.codebook import Codebook

__all__ = ["CodebookAccess"]


class CodebookAccess(Layouts):
    """A module with a `Codebook` between two projections."""

    freeze_codebook: bool
    has_projections: bool
    project_in: nn.Module
    project_out: nn.Module
    orthogonal_reg_weight: float
    codebook_diversity_loss_weight: float
    in_place_codebook_optimizer: torch.optim.Optimizer | None
    _codebook: Codebook
    _latest_indices: Tensor | None

    @property
    def ema_update(self) -> bool:
        """Whether codes follow their averages."""
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """`[K, D]`, or `[h, K, D]` with one codebook per head; can be assigned."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        self._codebook.embed.data.copy_(codes if self.separate_codebook_per_head else codes[None])

    def is_frozen(self, of_call: bool | None) -> bool:
        """Whether a forward with this freeze_codebook leaves the codebook as it is."""
        return self.freeze_codebook if of_call is None else of_call

    def _remember(self, row_indices: Tensor) -> None:
        """Keep the indices of a forward for `perplexity` and `usage`: `[c, M]` of c codebooks, or
        `[c, M, k]` of the k nearest codes.
        """
        # An exported program keeps nothing of its calls.
        if may_keep_tensors() and not torch.compiler.is_exporting():
            # A copy: the indices are returned too, and may be written then.
            self._latest_indices = row_indices.flatten(1).clone()

    @property
    def perplexity(self) -> Tensor:
        """exp(entropy) of the codes of the latest forward, 0-d: K if all are used alike, else less.

        Before the first forward it is 1, and `usage` is 0.
        """
        indices = self._latest_indices
        if indices is None:
            return torch.ones((), dtype=torch.float32, device="cpu")
        return self._codebook.perplexity(indices)

    @property
    def usage(self) -> Tensor:
        """Share of the codes that the latest forward used, 0-d."""
        indices = self._latest_indices
        if indices is None:
            return torch.zeros((), dtype=torch.float32, device="cpu")
        return (self._codebook.counts(indices) > 0).float().mean()

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Codebook rows of indices as `forward` returns them, before `project_out`.

        With heads that share a codebook the rows stay apart, `[..., h, D]`, as in the package.
        """
        return self._channels_as_input(self._codes_of(indices))

    def _codes_of(self, indices: Tensor) -> Tensor:
        """`get_codes_from_indices` with channels last."""
        # The indices of a single head have no dimension for it.
        if self.separate_codebook_per_head and self.heads > 1:
            per_head = zip(self.codebook, indices.unbind(-1), strict=True)
            return torch.cat([codebook[index] for codebook, index in per_head], dim=-1)
        return self._codebook.embed[0][indices]

    def _channels_as_input(self, x: Tensor) -> Tensor:
        return x if self._is_channel_last() else x.movedim(-1, 1)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What evaluation would return for these indices, in the layout of the input.

        Without a projection, heads that share a codebook stay apart, as in
        `get_codes_from_indices`. With one and channels first, the package projects along the last
        dimension of a map instead.
        """
        if not self.has_projections:
            return self.get_codes_from_indices(indices)
        codes = self._codes_of(indices)
        if self.heads > 1 and not self.separate_codebook_per_head:
            codes = codes.flatten(-2)  # [..., h, D] -> [..., h·D]
        return self._channels_as_input(self.project_out(codes))

    def expire_codes_(self, x: Tensor) -> None:
        """Replace dead codes by vectors of x, `[B, N, h·D]` as `project_in` returns it.

        The package looks at the first sequence of the batch only, this module at all of them.
        """
        rows = self._to_rows(x, None)[0].detach()
        self._codebook.expire_codes_(self._codebook.transform_input(rows))

    @torch.no_grad()
    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """Move the codebook by given vectors and indices, as `forward` takes and returns them.

        A vector of index −1 does not count: `forward` returns it where a vector is masked. The host
        waits for a GPU once.
        """
        sequence = self._to_sequence(x)
        self._check_indices(indices, x)
        mask = self._as_mask(x, sequence, mask, None)
        rows, row_mask = self._to_rows(self.project_in(sequence), mask)
        rows = self._codebook.transform_input(rows)
        per_head = indices.reshape(*sequence.shape[:2], self.heads)  # [B, N, h]
        order = (2, 0, 1) if self.separate_codebook_per_head else (0, 2, 1)
        row_indices = per_head.permute(order).reshape(rows.shape[:2])  # [c, M]
        counted = row_indices != -1
        counted = counted if row_mask is None else counted & row_mask
        self._codebook.update(rows.float(), row_indices, counted)

    update_ema_indices = update_indices

    def update_in_place_optimizer(self) -> None:
        """A step of the in-place optimiser, if there is one, by the gradients of all processes."""
        if self.in_place_codebook_optimizer is None:
            return
        for weight in self._codebook.parameters():
            if weight.grad is not None and self._codebook.use_ddp:
                dist.all_reduce(weight.grad)
                weight.grad /= dist.get_world_size()
        self.in_place_codebook_optimizer.step()
        self.in_place_codebook_optimizer.zero_grad()

    @property
    def has_codebook_orthogonal_loss(self) -> bool:
        """Whether a loss makes the codes orthogonal."""
        return self.orthogonal_reg_weight > 0

    @property
    def has_codebook_diversity_loss(self) -> bool:
        """Whether a loss makes the use of the codes even."""
        return self.codebook_diversity_loss_weight > 0
