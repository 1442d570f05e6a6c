"""One search of all codebooks of `ResidualVQ`, where its layers allow it.

Letters: Q quantisers, D codebook_dim, q quantisers in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.compat.lucidrains.vector_quantize import VectorQuantize
from vqvae2_fast.modules.autocast import without_autocast
from vqvae2_fast.modules.codebook import stacked_codebooks

if TYPE_CHECKING:
    from vqvae2_fast.compat.lucidrains.residual_vq import ResidualVQ

__all__ = ["at_once", "goes_at_once"]


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
    losses = torch.zeros(in_use, device=x.device, requires_grad=leaf)
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
