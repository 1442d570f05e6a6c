"""Beam search of `ResidualVQ`: several candidates of each vector from quantiser to quantiser.

In training only the codebook of the first quantiser moves, as in the package, unless it is frozen.

Letters: B batch, N positions, j candidates, k codes of each, q quantisers so far, D codebook_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.modules.projections import wide

if TYPE_CHECKING:
    from vqvae2_fast.compat.lucidrains.residual_vq import ResidualVQ

__all__ = ["beam_search"]


def beam_search(
    module: ResidualVQ,
    x: Tensor,
    beam_size: int,
    in_use: int,
    temperature: float | None,
    freeze_codebook: bool | None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The candidate with the least weighted sum of errors, as the package finds it.

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
            "ResidualVQ: expected commitment_weight > 0, without diveq or directional_reparam, "
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
