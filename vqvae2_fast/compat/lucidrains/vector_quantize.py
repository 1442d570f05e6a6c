"""`VectorQuantize` of lucidrains/vector-quantize-pytorch, on our operators.

Change `from vector_quantize_pytorch import VectorQuantize` to import from here, and keep your code
and your state dicts. The tests compare the module with the package itself. What differs:

- No N×K matrix is formed but for samples, topk, diversity and cross-entropy, and a step reads no
  count on the host (with `mask` it waits once).
- The search is exact, and ties take the lowest index (the package's distances are float32 roots).
- `quantized` is the exact codebook row in training too, with the package's gradient; the package's
  rotated or straight-through value is a rounding error away. The codebook then moves, so in
  training `quantized` equals `codebook[indices]` as it was before the update.
- `mask` works together with projections or heads, where the package's shapes do not fit.
- A batch that is empty, or masked everywhere, has a loss of 0, where the package's is NaN, and does
  not start a codebook.
- Where a batch has fewer vectors than there are dead codes, both replace a random choice of the
  codes, not the same one.
- With an EMA update, gradients of a diversity loss take the codes as they are after it, as in the
  package.
- `update_indices` leaves out vectors of index −1, which the package counts as code 0.
- `perplexity` and `usage` say how the latest batch used the codes.
- `torch.compile` makes one graph of a training step without a mask.
- Activation checkpoints do not move the codebook twice.

Letters: B batch, N positions, h heads, c codebooks (1 or h), M rows of a codebook, K codes, D
codebook_dim.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.compat.lucidrains.access import CodebookAccess
from vqvae2_fast.compat.lucidrains.arguments import (
    FORWARD_ARGUMENTS,
    OTHER_ARGUMENTS,
    check_together,
    refuse_others,
)
from vqvae2_fast.compat.lucidrains.codebook import Codebook, l2norm, recomputable
from vqvae2_fast.modules.binary import entropy_of
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.host import LatestForward, inside_backward
from vqvae2_fast.ops.vector_quantize.op import rotate_gradient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["LossBreakdown", "VectorQuantize", "directed", "masked_error"]


class VectorQuantize(CodebookAccess):
    """Vector quantiser with a codebook of moving averages.

    Args:
        dim: Channels of the input.
        codebook_size: K.
        codebook_dim: D of one head. If heads × D is not dim, linear layers project in and out.
        heads: Parts of a vector that are quantised on their own, by one codebook or, with
            `separate_codebook_per_head`, by one each.
        decay, eps: γ and ε of the moving averages.
        freeze_codebook: Do not move the codebook in training.
        kmeans_init, kmeans_iters: Start from k-means on the first batch.
        sync_kmeans: Take the vectors of all processes for that, if the codebook is synchronised.
        use_cosine_sim: Compare vectors and codes of length one.
        layernorm_after_project_in: Normalise after the projection, if there is one.
        threshold_ema_dead_code: Codes with a smaller average count become vectors of the batch.
        channel_last: The input is `[B, N, dim]`; otherwise `[B, dim, N]`.
        accept_image_fmap, accept_3d_fmap: The input is `[B, dim, H, W]`; `[B, dim, depth, H, W]`.
        commitment_weight: Factor of the loss, the mean squared distance to the code.
        commitment_use_cross_entropy_loss: The cross-entropy of the codes by distance instead.
        orthogonal_reg_weight, orthogonal_reg_active_codes_only, orthogonal_reg_max_codes: Weight of
            a loss that makes codes orthogonal; of the codes in use; of as many at random. The
            codebook is then a parameter.
        codebook_diversity_loss_weight, codebook_diversity_temperature: Weight of minus the entropy
            of the codes' mean share, a softmax of distance × temperature.
        stochastic_sample_codes, sample_codebook_temp: Draw codes in training.
        directional_reparam, directional_reparam_variance: `quantized` is x and a step as long as
            the error, in its direction with noise, so that the codebook has a gradient without a
            loss (https://openreview.net/forum?id=KRVnpTbx7R).
        rotation_trick: Gradient of https://arxiv.org/abs/2410.06424 instead of straight through;
            by default if dim > 1.
        sync_codebook: Sum the statistics of all processes; by default if there are several.
        ema_update: Whether codes follow their averages.
        manual_ema_update: They do so when `_codebook.update_ema()` is called.
        learnable_codebook: The codebook is a parameter; needs ema_update=False.
        in_place_codebook_optimizer: Makes an optimiser of the codebook, which steps in each forward
            unless manual_in_place_optimizer_update.
        return_zeros_for_masked_padding: Masked positions return zeros; otherwise the input.
        route_gradients_to_input: Whether `quantized` has a gradient to x.
        others: Further arguments of the package, with values that have no effect.

    Raises:
        NotImplementedError: A further argument of the package has a value that would have an
            effect.
        TypeError: The package has no such argument.
    """

    zero: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_diversity_loss_weight: float = 0.0,
        codebook_diversity_temperature: float = 100.0,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        *,
        rotation_trick: bool | None = None,
        directional_reparam: bool = False,
        directional_reparam_variance: float = 5e-3,
        sync_codebook: bool | None = None,
        ema_update: bool | None = None,
        manual_ema_update: bool = False,
        learnable_codebook: bool | None = None,
        in_place_codebook_optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]
        | None = None,
        manual_in_place_optimizer_update: bool = False,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
        **others: Any,
    ) -> None:
        super().__init__()
        refuse_others(others, OTHER_ARGUMENTS)
        directional = directional_reparam
        learnable = directional if learnable_codebook is None else learnable_codebook
        follows = not directional if ema_update is None else ema_update
        rotates = (dim > 1 and not directional) if rotation_trick is None else rotation_trick
        check_together(
            learnable=learnable,
            follows=follows,
            cosine=use_cosine_sim,
            rotates=rotates,
            directional=directional,
            threshold=threshold_ema_dead_code,
        )
        self.dim = dim
        self.codebook_size = codebook_size
        self.heads = heads
        self.eps = eps
        self.separate_codebook_per_head = separate_codebook_per_head
        self.freeze_codebook = freeze_codebook
        self.use_cosine_sim = use_cosine_sim
        self.channel_last = channel_last
        self.accept_image_fmap = accept_image_fmap
        self.accept_3d_fmap = accept_3d_fmap
        self.commitment_weight = commitment_weight
        self.has_commitment_loss = commitment_weight > 0 and not directional
        self.directional_reparam = directional
        self.directional_reparam_variance = directional_reparam_variance
        self.commitment_use_cross_entropy_loss = commitment_use_cross_entropy_loss
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes
        self.codebook_diversity_loss_weight = codebook_diversity_loss_weight
        self.codebook_diversity_temperature = codebook_diversity_temperature
        self.rotation_trick = rotates
        self.learnable_codebook = learnable
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.route_gradients_to_input = route_gradients_to_input

        codebook_dim = dim if codebook_dim is None else codebook_dim
        inner = codebook_dim * heads
        self.has_projections = inner != dim
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(dim, inner)
            if layernorm_after_project_in:
                self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(inner))
            self.project_out = nn.Linear(inner, dim)
        if sync_codebook is None:
            sync_codebook = dist.is_initialized() and dist.get_world_size() > 1
        self._codebook = Codebook(
            codebook_dim,
            codebook_size,
            heads if separate_codebook_per_head else 1,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            decay=decay,
            eps=eps,
            threshold_ema_dead_code=threshold_ema_dead_code,
            use_cosine_sim=use_cosine_sim,
            use_ddp=sync_codebook,
            sync_kmeans=sync_kmeans,
            ema_update=follows,
            manual_ema_update=manual_ema_update,
            learnable=learnable or orthogonal_reg_weight > 0,
            sample_codebook_temp=sample_codebook_temp,
            stochastic=stochastic_sample_codes,
        )
        self.in_place_codebook_optimizer = None
        if in_place_codebook_optimizer is not None:
            self.in_place_codebook_optimizer = in_place_codebook_optimizer(
                self._codebook.parameters()
            )
        self.manual_in_place_optimizer_update = manual_in_place_optimizer_update
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self._latest_indices: Tensor | None = None
        self._latest: LatestForward | None = LatestForward()  # None: a residual quantiser has it

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Any = None,
        ema_update_weight: Any = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> tuple[Any, ...]:
        """Quantise; in training move the codebook.

        Args:
            x: `[B, N, dim]`, `[B, dim]`, or as the constructor's layout flags say.
            indices: int64, as they are returned: return the codes as they are before the heads are
                joined and projected, and the cross-entropy of these indices.
            mask: bool `[B, N]`, True where a position counts; or `lens` int64 `[B]`.
            topk: The k best codes of each vector instead of the best; with one head. The codebook
                does not move.
            sample_codebook_temp, freeze_codebook, ema_update: As in the constructor, for this call.

        Returns:
            quantized: x's shape and dtype; with topk a dimension k follows the positions.
            indices: int64, x's shape without dim (and a last size h with heads, or k with topk); -1
                where masked.
            loss: 0-d; 0 in evaluation. With topk one for each index.
            breakdown: With `return_loss_breakdown`, a `LossBreakdown`.

        Raises:
            ValueError: Shapes that do not fit the layout, or mask and lens together.
            TypeError: indices are not int64.
            RuntimeError: A checkpoint recomputes a forward after which the codebook has moved, or
                one with an in-place optimiser.
            NotImplementedError: Another argument of the package is given.
        """
        given = {
            "codebook_transform_fn": codebook_transform_fn,
            "ema_update_weight": ema_update_weight,
            "accum_ema_update": accum_ema_update,
        }
        refuse_others(given, FORWARD_ARGUMENTS)
        topk = self._checked_topk(topk)
        sequence = self._to_sequence(x)
        if indices is not None:
            self._check_indices(indices, x)
        mask = self._as_mask(x, sequence, mask, lens)
        rows, row_mask = self._to_rows(self.project_in(sequence), mask)
        rows = self._codebook.transform_input(rows)
        frozen = self.is_frozen(freeze_codebook)
        learning = self.training and not frozen
        losses = Losses(self, sequence, rows, mask, row_mask, self.zero)

        def find(rows: Tensor, update: bool) -> tuple[Tensor, Tensor, Tensor | None]:
            return self._find(
                rows,
                row_mask,
                update,
                ema_update,
                topk,
                sample_codebook_temp,
                needs_distances=indices is not None,
            )

        in_place = self.in_place_codebook_optimizer is not None and learning
        if in_place and inside_backward():
            raise RuntimeError(
                "a checkpoint recomputes a forward in which the in-place optimiser "
                "steps. Leave the quantiser out of the checkpoint."
            )
        moves = learning and topk is None and self._codebook.moves(ema_update)
        moving = [self._codebook] if moves else []
        with without_autocast(x.device), recomputable(self._latest, moving):
            quantized, row_indices, distances = find(
                # The loss in place is the codebook's alone.
                rows.detach() if in_place else rows,
                learning and topk is None,
            )
            quantized = quantized.to(x.dtype)
        inplace = self.zero
        if in_place:
            inplace = masked_error(quantized, rows.detach(), row_mask)
            inplace.backward()
            if not self.manual_in_place_optimizer_update:
                self.update_in_place_optimizer()
            with without_autocast(x.device):
                quantized, row_indices, distances = find(rows, False)
                quantized = quantized.to(x.dtype)
        if indices is not None:
            assert distances is not None
            # As the package returns them: heads apart, before the projection.
            batch, length, _ = sequence.shape
            apart = batch * self.heads // len(rows)
            routed = self._routed(x, rows, quantized).unflatten(1, (apart, length))
            return routed if self.heads > 1 else routed[0], losses.of_codes(distances, indices)

        codes = self._indices_from_rows(row_indices, sequence)
        # As in the package, only training keeps the loss from a codebook that does not learn by it.
        learns = self.learnable_codebook and not frozen
        found = quantized if learns or not self.training else quantized.detach()
        loss, parts = losses.of_forward(found, codes, row_indices, distances, topk)
        quantized = self._routed(x, rows, quantized)
        quantized = self.project_out(self._from_rows(quantized, sequence))
        if mask is not None and row_mask is not None:
            padding = torch.zeros_like(sequence)
            padding = padding if self.return_zeros_for_masked_padding else sequence
            kept = mask if topk is None else mask[..., None]
            padding = padding if topk is None else padding[:, :, None]
            quantized = torch.where(kept[..., None], quantized, padding)
            codes = codes.masked_fill(~mask.view(*mask.shape, *[1] * (codes.dim() - 2)), -1)
            unmasked = row_mask if topk is None else row_mask[..., None]
            row_indices = row_indices.masked_fill(~unmasked, -1)
        self._remember(row_indices)
        if loss.dim():
            loss = self._codes_like(loss, x)
        result = (self._from_sequence(quantized, x), self._codes_like(codes, x), loss)
        return (
            (*result, parts._replace(inplace_optimize=inplace)) if return_loss_breakdown else result
        )

    def _checked_topk(self, topk: int | None) -> int | None:
        if topk is None:
            return None
        by_entropy = self.commitment_use_cross_entropy_loss and self.training
        in_place = self.in_place_codebook_optimizer is not None and self.training
        if topk < 1 or self.heads > 1 or by_entropy or in_place:
            raise ValueError(
                "expected topk >= 1, and only with one head and, in training, "
                f"without commitment_use_cross_entropy_loss and in-place optimiser, got {topk}."
            )
        return min(topk, self.codebook_size)

    def _find(
        self,
        rows: Tensor,
        row_mask: Tensor | None,
        update: bool,
        ema_update: bool | None,
        topk: int | None,
        temperature: float | None,
        *,
        needs_distances: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes `[c, M, D]`, indices `[c, M]` (with topk `[1, M, k]`), distances if needed."""
        book = self._codebook
        wide = rows.float()
        book.start(wide.detach(), row_mask)
        samples = book.samples(temperature)
        needs_distances |= self.training and (
            self.commitment_use_cross_entropy_loss or self.codebook_diversity_loss_weight > 0
        )
        distances = book.distances(wide) if needs_distances or samples else None
        if samples and distances is not None:
            row_indices = book.choose(distances, temperature, topk)
        elif topk is not None:
            row_indices = book.nearest(wide.detach(), topk)
        else:
            row_indices = book.search(wide.detach())
        quantized = book.lookup(row_indices)
        if update:
            book.update(wide.detach(), row_indices, row_mask, ema_update)
        return quantized, row_indices, distances

    def _routed(self, x: Tensor, rows: Tensor, quantized: Tensor) -> Tensor:
        """The codes with the gradient that training passes to the rows."""
        if not self.training:
            return quantized
        if x.requires_grad and self.route_gradients_to_input:
            rows = rows[:, :, None].expand_as(quantized) if quantized.dim() == 4 else rows
            codes = quantized.detach()
            if self.rotation_trick:
                quantized = rotate_gradient(rows, codes)
            elif self.directional_reparam:
                quantized = directed(rows, quantized, self.directional_reparam_variance)
            else:
                quantized = codes + (rows - rows.detach())  # adds zero
        return quantized


LossBreakdown = namedtuple(
    "LossBreakdown", ["commitment", "codebook_diversity", "orthogonal_reg", "inplace_optimize"]
)


def directed(source: Tensor, target: Tensor, variance: float) -> Tensor:
    """source + ‖target − source‖ · u, u the direction of target − source with noise of a variance.

    The gradient is that of the length: DiVeQ, https://openreview.net/forum?id=KRVnpTbx7R.
    """
    error = target - source
    noised = error + variance**0.5 * torch.randn_like(error)
    return source + l2norm(noised).detach() * error.norm(dim=-1, keepdim=True)


def masked_error(quantized: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error of `[c, M, D]`, over the rows of mask `[c, M]`; 0 if there are none."""
    if mask is None:
        return F.mse_loss(quantized, target, reduction="mean" if target.numel() else "sum")
    error = F.mse_loss(quantized, target, reduction="none").mean(-1)  # [c, M]
    return error.where(mask, 0.0).sum() / mask.sum().clamp(min=1)


def _orthogonal(codes: Tensor) -> Tensor:
    """Mean squared cosine of codes `[h, K, D]`, less that of each with itself: eq. 2 of
    https://arxiv.org/abs/2112.00384."""
    heads, count, _ = codes.shape
    unit = l2norm(codes)
    # Σ over pairs of (u·v)² is the squared norm of UᵀU, which is D×D.
    squares = (unit.mT @ unit).square().sum()
    return squares / (heads * count**2) - 1 / count


class Losses:
    """The losses of one forward.

    Args:
        module: Whose weights and flags they have.
        sequence: `[B, N, dim]`.
        rows: What was quantised, `[c, M, D]`.
        mask, row_mask: bool `[B, N]` and `[c, M]`, or None.
        zero: 0-d.
    """

    def __init__(
        self,
        module: VectorQuantize,
        sequence: Tensor,
        rows: Tensor,
        mask: Tensor | None,
        row_mask: Tensor | None,
        zero: Tensor,
    ) -> None:
        self.module, self.sequence, self.rows = module, sequence, rows
        self.mask, self.row_mask, self.zero = mask, row_mask, zero

    def of_codes(self, distances: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy of codes int64 `[B, ..., (h)]` by distances `[c, M, K]`; −1 is left out."""
        scores = self.module._per_head(distances, self.sequence)  # [B, N, h, K]
        total = F.cross_entropy(
            scores.flatten(0, 2), codes.flatten(), ignore_index=-1, reduction="sum"
        )
        return total / (codes != -1).sum().clamp(min=1)

    def of_forward(
        self,
        found: Tensor,
        codes: Tensor,
        row_indices: Tensor,
        distances: Tensor | None,
        topk: int | None,
    ) -> tuple[Tensor, LossBreakdown]:
        """The weighted sum, 0-d or with topk `[B, N, k]`, and its parts.

        Args:
            found: Codes `[c, M, (k,) D]`, with a gradient where the codebook learns by it.
            codes: int64 `[B, N, (h or k)]`.
            row_indices: int64 `[c, M, (k)]`.
        """
        module, zero = self.module, self.zero
        if not module.training:
            if topk is None:
                return zero * 1.0, LossBreakdown(zero, zero, zero, zero)
            commitment = self._of_each(found)
            weight = module.commitment_weight if module.has_commitment_loss else 1.0
            return commitment * weight, LossBreakdown(commitment, zero, zero, zero)
        # A compiled graph cannot make a leaf that requires a gradient; there the loss requires one
        # if its inputs do.
        loss = torch.zeros_like(zero, requires_grad=not torch.compiler.is_compiling())
        diversity = commitment = orthogonal = zero
        if module.codebook_diversity_loss_weight > 0 and self.sequence.numel():
            assert distances is not None
            diversity = self._diversity(distances)
            loss = loss + diversity * module.codebook_diversity_loss_weight
        if module.has_commitment_loss:
            commitment = self._commitment(found, codes, distances, topk)
            loss = loss + commitment * module.commitment_weight
        if module.orthogonal_reg_weight > 0:
            orthogonal = self._orthogonality(row_indices)
            loss = loss + orthogonal * module.orthogonal_reg_weight
        return loss, LossBreakdown(commitment, diversity, orthogonal, zero)

    def _commitment(
        self, found: Tensor, codes: Tensor, distances: Tensor | None, topk: int | None
    ) -> Tensor:
        if self.module.commitment_use_cross_entropy_loss:
            assert distances is not None
            if self.mask is not None:
                kept = self.mask.view(*self.mask.shape, *[1] * (codes.dim() - 2))
                codes = codes.masked_fill(~kept, -1)
            return self.of_codes(distances, codes)
        if topk is not None:
            return self._of_each(found)
        # The package compares masked vectors with its original input, which is not normalised.
        apart = self.module.heads > 1 or self.module.has_projections
        as_it_came = self.mask is not None and not apart
        target = self.sequence.reshape(self.rows.shape) if as_it_came else self.rows
        return masked_error(found, target, self.row_mask)

    def _of_each(self, found: Tensor) -> Tensor:
        """Mean squared error of each of k codes, `[1, M, k, D]` -> `[B, N, k]`, 0 where masked."""
        target = self.rows[:, :, None].expand_as(found)
        error = F.mse_loss(found, target, reduction="none").mean(-1)
        error = error.view(*self.sequence.shape[:2], error.shape[-1])
        return error if self.mask is None else error.where(self.mask[..., None], 0.0)

    def _diversity(self, distances: Tensor) -> Tensor:
        """Minus the mean over positions of the entropy of the codes' share over the batch."""
        prob = (distances * self.module.codebook_diversity_temperature).softmax(-1)
        length = self.sequence.shape[1]
        share = prob.unflatten(1, (-1, length)).mean((0, 1))  # [N, K]
        return -entropy_of(share, 1e-5).sum(-1).mean()

    def _orthogonality(self, row_indices: Tensor) -> Tensor:
        module = self.module
        codes = module._codebook.embed
        if module.orthogonal_reg_active_codes_only:
            if row_indices.numel() == 0:
                return self.zero
            if len(codes) > 1:
                raise ValueError(
                    "expected one codebook with orthogonal_reg_active_codes_only, "
                    f"got {len(codes)} (separate_codebook_per_head)."
                )
            codes = codes[:, row_indices.unique()]
        most = module.orthogonal_reg_max_codes
        if most is not None and codes.shape[1] > most:
            codes = codes[:, torch.randperm(codes.shape[1], device=codes.device)[:most]]
        return _orthogonal(codes)
