"""`ResidualVQ` and `GroupedResidualVQ` of lucidrains/vector-quantize-pytorch.

What differs from the package, besides what `VectorQuantize` lists:

- One operator searches all quantisers where nothing needs them one by one: in float32, without a
  k-means start to come, a mask, a beam, a shared or a learnt codebook, hooks, or layers that were
  set otherwise than the first.
- Maps, volumes and channels before positions work whatever their sizes, also with projections;
  indices are `[B, positions, Q]`.
- A frozen codebook never moves. The package moves it with freeze_codebook=True in the constructor,
  and of a call with a beam or a shared codebook.
- Replacing dead codes of a shared codebook looks at all sequences of a batch.

Letters: B batch, N positions, Q quantisers, K codes, D codebook_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.compat.lucidrains.access import Layouts
from vqvae2_fast.compat.lucidrains.arguments import Unsupported, refuse_others
from vqvae2_fast.compat.lucidrains.codebook import recomputable
from vqvae2_fast.compat.lucidrains.residual import Grouped, Residual
from vqvae2_fast.compat.lucidrains.vector_quantize import VectorQuantize, directed
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.host import LatestForward
from vqvae2_fast.modules.quantizer_interface import projections, wide
from vqvae2_fast.modules.residual_vq import stacked_codebooks

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GroupedResidualVQ", "ResidualVQ"]

_OTHER_ARGUMENTS = {
    "implicit_neural_codebook": Unsupported(
        (False,),
        "Codes that depend on the ones before need a search of their own. Use more "
        "quantisers, or the package vector-quantize-pytorch.",
    ),
}
_FORWARD = {
    "indices": Unsupported(
        (None,),
        "The package's own raises an error for them. Call the layers one by one: "
        "layers[q](residual, indices=indices[..., q]) returns their cross-entropy.",
    )
}


class ResidualVQ(Residual, Layouts):
    """`VectorQuantize` in a row: algorithm 1 of https://arxiv.org/abs/2107.03312.

    Args:
        dim: Channels of the input; linear layers lead to codebook_dim and back where it differs.
        num_quantizers: Q; by default the length of codebook_size.
        codebook_size: K, or one number for each quantiser.
        codebook_dim: D; by default dim.
        shared_codebook: All quantisers use the codebook of the first.
        heads: 1.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: As of
            `Residual`.
        channel_last, accept_image_fmap, accept_3d_fmap: The layout of x, as of `VectorQuantize`.
        beam_size, eval_beam_size, beam_score_quantizer_weights: Keep so many candidates, in
            training and in evaluation, by the weighted sum of their errors.
        quant_grad_frac: Share of a code's gradient that the next residuals pass on.
        return_zeros_for_masked_padding: As of `VectorQuantize`.
        diveq: Codebooks learn by the gradient of a noisy step to the sum of codes
            (https://openreview.net/forum?id=KRVnpTbx7R); there are no losses.
        vq_kwargs: Further arguments of `VectorQuantize`.

    Raises:
        NotImplementedError: implicit_neural_codebook.
    """

    beam_score_weights: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int | None = None,
        codebook_size: int | tuple[int, ...],
        codebook_dim: int | None = None,
        shared_codebook: bool = False,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        mlp_kwargs: dict[str, Any] | None = None,
        beam_size: int | None = None,
        eval_beam_size: int | None = None,
        beam_score_quantizer_weights: Sequence[float] | None = None,
        quant_grad_frac: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        implicit_neural_codebook: bool = False,
        diveq: bool = False,
        **vq_kwargs: Any,
    ) -> None:
        given = {"implicit_neural_codebook": implicit_neural_codebook}
        refuse_others(given, _OTHER_ARGUMENTS)
        if heads != 1:
            raise ValueError(f"expected heads=1, as in the package, got {heads}.")
        sizes = codebook_size
        if isinstance(sizes, int):
            if num_quantizers is None:
                raise ValueError("expected num_quantizers with one codebook_size.")
            sizes = (sizes,) * num_quantizers
        if num_quantizers not in (None, len(sizes)):
            raise ValueError(
                f"expected num_quantizers={len(sizes)} for codebook_size={sizes}, got "
                f"{num_quantizers}."
            )
        if shared_codebook and len(set(sizes)) > 1:
            raise ValueError(f"expected one codebook_size with shared_codebook, got {sizes}.")
        if eval_beam_size is not None and beam_size is None:
            raise ValueError("expected beam_size with eval_beam_size.")
        weights = beam_score_quantizer_weights or [1.0] * len(sizes)
        if len(weights) != len(sizes):
            raise ValueError(
                f"expected {len(sizes)} beam_score_quantizer_weights, got {len(weights)}."
            )
        super().__init__(
            len(sizes),
            quantize_dropout,
            quantize_dropout_cutoff_index,
            quantize_dropout_multiple_of,
        )
        self.dim = dim
        self.codebook_dim = dim if codebook_dim is None else codebook_dim
        self.has_projections = self.codebook_dim != dim
        self.project_in, self.project_out = projections(dim, self.codebook_dim)
        # The layers see sequences, whatever the layout.
        self.channel_last = channel_last
        self.accept_image_fmap = accept_image_fmap
        self.accept_3d_fmap = accept_3d_fmap
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        if shared_codebook:
            # It moves once, after the last quantiser.
            vq_kwargs |= {"manual_ema_update": True, "manual_in_place_optimizer_update": True}
        self.diveq = diveq
        if diveq:
            # The codebooks learn from the noise on the sum, through all quantisers.
            vq_kwargs |= {
                "ema_update": False,
                "learnable_codebook": True,
                "route_gradients_to_input": False,
                "commitment_weight": 0.0,
            }
        self.codebook_sizes = sizes
        self.uniform_codebook_size = len(set(sizes)) == 1
        self.layers = nn.ModuleList(
            VectorQuantize(
                dim=self.codebook_dim,
                codebook_size=size,
                codebook_dim=self.codebook_dim,
                return_zeros_for_masked_padding=return_zeros_for_masked_padding,
                **vq_kwargs,
            )
            for size in sizes
        )
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
        self.beam_size = beam_size
        self.eval_beam_size = beam_size if eval_beam_size is None else eval_beam_size
        self.register_buffer("beam_score_weights", torch.tensor(weights), persistent=False)
        self.shared_codebook = shared_codebook
        self._latest = LatestForward()
        for layer in self._quantizers():
            layer._latest = None
        if shared_codebook:
            for layer in self._quantizers()[1:]:
                layer._codebook = self._quantizers()[0]._codebook

    @property
    def codebook_size(self) -> int:
        """K of the first quantiser."""
        return self._quantizers()[0].codebook_size

    @property
    def codebooks(self) -> Any:
        codes = tuple(layer._codebook.embed[0] for layer in self._quantizers())
        return torch.stack(codes) if self.uniform_codebook_size else codes

    def _quantizers(self) -> list[VectorQuantize]:
        return [cast("VectorQuantize", layer) for layer in self.layers]

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Any = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Any, ...]:
        """Quantise; in training move the codebooks.

        Args:
            x: `[B, N, dim]`, `[B, dim]`, or as the constructor's layout flags say.
            mask: bool `[B, N]`, True where a position counts.
            sample_codebook_temp, freeze_codebook: As of `VectorQuantize`.
            beam_size, rand_quantize_dropout_fixed_seed: For this call.

        Returns:
            quantized: x's shape.
            indices: int64, the positions of x and Q; −1 for dropped quantisers and where masked.
            losses: `[Q]`, float32 also in a module of half precision.
            codes: With return_all_codes, those of each quantiser.

        Raises:
            ValueError: x does not fit the layout.
            RuntimeError: A checkpoint recomputes a forward after which the codebooks have moved.
            NotImplementedError: indices are given, or a mask with a beam.
        """
        refuse_others({"indices": indices}, _FORWARD)
        sequence = self._to_sequence(x)
        projected = self.project_in(sequence)
        drops = self.training and self.quantize_dropout
        in_use = self._number_in_use(drops, rand_quantize_dropout_fixed_seed, x.device)
        if beam_size is None:
            beam_size = self.beam_size if self.training else self.eval_beam_size
        if beam_size is not None and beam_size > 1 and mask is not None:
            raise NotImplementedError(
                "a mask with beam_size is not supported: leave one of them out."
            )
        moving = {
            layer._codebook: None  # once where it is shared
            for layer in self._quantizers()
            if self.training and not layer.is_frozen(freeze_codebook) and layer._codebook.moves()
        }
        with recomputable(self._latest, moving):
            if beam_size is not None and beam_size > 1:
                found = beam_search(
                    self, projected, beam_size, in_use, sample_codebook_temp, freeze_codebook
                )
            elif goes_at_once(self, projected, mask, sample_codebook_temp):
                found = at_once(self, projected, in_use, freeze_codebook)
            else:
                found = self._one_by_one(
                    projected, in_use, mask, sample_codebook_temp, freeze_codebook
                )
            quantized, codes, losses, residuals = found
            frozen = self._quantizers()[0].is_frozen(freeze_codebook)
            if self.training and self.shared_codebook and not frozen:
                self._move_shared_(residuals)
        if self.diveq:
            quantized = directed(projected, quantized, 5e-3)
        quantized = self.project_out(quantized)
        if mask is not None:
            padding = torch.zeros_like(quantized)
            padding = padding if self.return_zeros_for_masked_padding else sequence
            quantized = torch.where(mask[..., None], quantized, padding)
        missing = self.num_quantizers - in_use
        codes = nn.functional.pad(codes, (0, missing), value=-1)
        losses = nn.functional.pad(wide(losses), (0, missing))
        codes = self._codes_like(codes, x)
        result = (self._from_sequence(quantized, x), codes, losses)
        return (*result, self.get_codes_from_indices(codes)) if return_all_codes else result

    def _one_by_one(
        self,
        x: Tensor,
        in_use: int,
        mask: Tensor | None,
        temperature: float | None,
        freeze_codebook: bool | None,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The sum of codes, indices `[..., q]`, losses `[q]` and residuals of q quantisers."""
        residual, total = x, torch.zeros_like(x)
        indices, losses, residuals = [], [], []
        for layer in self._quantizers()[:in_use]:
            residuals.append(residual)
            quantized, index, loss = layer(
                residual,
                mask=mask,
                sample_codebook_temp=temperature,
                freeze_codebook=freeze_codebook,
            )
            residual = residual - self.passed_on(quantized)
            total = total + quantized
            indices.append(index)
            losses.append(loss)
        return total, torch.stack(indices, dim=-1), torch.stack(losses), residuals

    def passed_on(self, quantized: Tensor) -> Tensor:
        """A code with the share quant_grad_frac of its gradient."""
        share = max(self.quant_grad_frac, 0.0)
        return (
            quantized.detach()
            if not share
            else share * quantized + (1 - share) * (quantized.detach())
        )

    @torch.no_grad()
    def _move_shared_(self, residuals: list[Tensor]) -> None:
        """Move the codebook that all quantisers share by what all of them saw."""
        first = self._quantizers()[0]
        if first.ema_update:
            first._codebook.update_ema()
            first.update_in_place_optimizer()
        every = torch.stack(residuals, dim=-2)  # [B, N, q, D]
        first.expire_codes_(every.flatten(1, 2))

    @property
    def vq_is_ema_updating(self) -> bool:
        """Whether codes follow their averages."""
        return self._quantizers()[0].ema_update


class GroupedResidualVQ(Grouped):
    """A `ResidualVQ` for each group of channels (https://arxiv.org/abs/2305.02765).

    Args:
        dim: Channels of the input.
        groups, accept_image_fmap: As of `Grouped`.
        kwargs: Arguments of `ResidualVQ`.
    """

    def __init__(
        self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(dim, groups, accept_image_fmap)
        for _ in range(groups):
            rvq = ResidualVQ(dim=dim // groups, accept_image_fmap=accept_image_fmap, **kwargs)
            self.rvqs.append(rvq)

    @property
    def split_dim(self) -> int:
        """The dimension of the channels."""
        return -1 if cast("ResidualVQ", self.rvqs[0])._is_channel_last() else 1

    def forward(
        self,
        x: Tensor,
        indices: Any = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """As `ResidualVQ`, with indices and losses `[groups, ...]`, codes as a tuple."""
        refuse_others({"indices": indices}, _FORWARD)
        return self._quantised(
            x,
            2,
            mask=mask,
            return_all_codes=return_all_codes,
            sample_codebook_temp=sample_codebook_temp,
            freeze_codebook=freeze_codebook,
        )


def goes_at_once(
    module: ResidualVQ, x: Tensor, mask: Tensor | None, temperature: float | None
) -> bool:
    """Whether `at_once` finds what calling the layers one by one would."""
    plain = x.dtype == torch.float32 and mask is None and not module.shared_codebook
    return (
        plain
        and module.quant_grad_frac <= 0
        and x.numel() > 0
        and not torch.nn.modules.module._has_any_global_hook()
        and _are_alike(module)
        and all(_is_plain(layer, temperature) for layer in module._quantizers())
        and all(layer._codebook.has_started() for layer in module._quantizers())
    )


def _are_alike(module: ResidualVQ) -> bool:
    """Whether what `at_once` takes from the first layer holds for all of them."""
    first = module._quantizers()[0]
    return all(
        type(layer) is VectorQuantize
        and layer.training == module.training
        and layer.commitment_weight == first.commitment_weight
        and layer.has_commitment_loss == first.has_commitment_loss
        and layer.rotation_trick == first.rotation_trick
        and layer.route_gradients_to_input == first.route_gradients_to_input
        for layer in module._quantizers()
    )


def _is_plain(layer: VectorQuantize, temperature: float | None) -> bool:
    """Whether a layer searches by distance, loses by it alone, and nobody listens to its calls."""
    book = layer._codebook
    return not (
        book.use_cosine_sim
        or book.learnable_codebook
        or book.samples(temperature)
        or layer.directional_reparam
        or layer.orthogonal_reg_weight > 0
        or layer.codebook_diversity_loss_weight > 0
        or layer.commitment_use_cross_entropy_loss
        or layer.in_place_codebook_optimizer is not None
        or layer._forward_pre_hooks
        or layer._forward_hooks
        or layer._backward_pre_hooks
        or layer._backward_hooks
    )


def at_once(
    module: ResidualVQ, x: Tensor, in_use: int, freeze_codebook: bool | None
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """What `ResidualVQ._one_by_one` returns, with no residuals."""
    layers = module._quantizers()[:in_use]
    first = layers[0]
    codebooks = stacked_codebooks([layer._codebook.embed[0] for layer in layers])
    routes = module.training and x.requires_grad and first.route_gradients_to_input
    with without_autocast(x.device):
        z_q, indices, commitments = ops.residual_nearest_code(
            x, codebooks, rotate=first.rotation_trick
        )
    quantized = z_q if routes and first.rotation_trick else z_q.detach()
    if routes and not first.rotation_trick:
        # Each quantiser passes the gradient straight to x.
        quantized = quantized + in_use * (x - x.detach())
    # A compiled graph cannot make a leaf that requires a gradient.
    leaf = module.training and not torch.compiler.is_compiling()
    losses = torch.zeros(in_use, device=x.device, requires_grad=leaf, dtype=torch.float32)
    if module.training and first.has_commitment_loss:
        losses = losses + first.commitment_weight * commitments
    residual = x.detach()
    for layer, codebook, index in zip(layers, codebooks, indices.unbind(-1), strict=True):
        rows, row_index = residual.reshape(1, -1, module.codebook_dim), index.reshape(1, -1)
        layer._remember(row_index)
        if module.training:
            if not layer.is_frozen(freeze_codebook):
                layer._codebook.update(rows, row_index, None)
            residual = residual - codebook[index]
    return quantized, indices, losses, []


def beam_search(
    module: ResidualVQ,
    x: Tensor,
    beam_size: int,
    in_use: int,
    temperature: float | None,
    freeze_codebook: bool | None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The candidate with the least weighted sum of errors, as the package finds it.

    In training only the codebook of the first quantiser moves, as in the package, unless it is
    frozen. Letters: M vectors, j candidates, k codes of each, q quantisers so far.

    Args:
        x: `[..., D]`.

    Returns:
        Sum of codes `[..., D]`, indices `[..., q]`, losses `[q]`, and what the first quantiser saw.

    Raises:
        ValueError: The layers have no commitment loss in training.
    """
    positions = x.shape[:-1]
    residual = x.reshape(-1, 1, x.shape[-1])  # [M, j, D]
    total = torch.zeros_like(residual)
    scores = residual.new_zeros(residual.shape[:2])  # [M, j]
    # Of each candidate its indices and losses so far, `[M, j]` of each quantiser.
    indices: list[Tensor] = []
    losses: list[Tensor] = []
    layers = module._quantizers()[:in_use]
    if not all(layer.has_commitment_loss or not layer.training for layer in layers):
        raise ValueError(
            "expected commitment_weight > 0, without diveq or directional_reparam, "
            "with a beam in training, which ranks candidates by their commitment loss. Pass "
            "beam_size=1 to forward in training."
        )
    for number, layer in enumerate(layers):
        candidates = residual.shape[1]
        codes, index, loss = layer(
            residual,
            topk=beam_size,
            sample_codebook_temp=temperature,
            freeze_codebook=freeze_codebook,
        )
        k = index.shape[-1]
        scores = (scores[:, :, None] - loss * module.beam_score_weights[number]).flatten(1)
        # Candidate j with code k is number j·k of the next ones.
        origin = torch.arange(candidates, device=x.device).repeat_interleave(k)
        codes = codes.flatten(1, 2)
        residual = residual[:, origin] - module.passed_on(codes)
        total = total[:, origin] + codes
        indices = [*(part[:, origin] for part in indices), index.flatten(1)]
        losses = [*(part[:, origin] for part in losses), loss.flatten(1)]
        kept = 1 if number == len(layers) - 1 else beam_size
        if scores.shape[1] > kept:
            scores, best = scores.topk(kept, dim=-1)  # [M, j]
            rows = torch.arange(len(best), device=x.device)[:, None]
            residual, total = residual[rows, best], total[rows, best]
            indices = [part[rows, best] for part in indices]
            losses = [part[rows, best] for part in losses]
    found = torch.stack([index[:, 0] for index in indices], dim=-1).view(*positions, in_use)
    if module.training and not layers[0].is_frozen(freeze_codebook):
        # Not by `update_indices`, which would wait for a GPU: each vector has a code.
        book = layers[0]._codebook
        rows = book.transform_input(x.detach().reshape(1, -1, x.shape[-1]))
        book.update(rows.float(), found[..., 0].reshape(1, -1), None)
    mean_losses = torch.stack([wide(loss[:, 0]).sum() / max(len(loss), 1) for loss in losses])
    return total[:, 0].view(x.shape), found, mean_losses, [x]
