"""`code_cross_entropy`: the loss of a prior and its gradients, straight from features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.ops._checks import not_float32
from vqvae2_fast.ops._registry import LIBRARY, register
from vqvae2_fast.ops.code_cross_entropy.reference import code_cross_entropy_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODE_CROSS_ENTROPY"]


def _fake(
    features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = (value.new_empty(value.shape) for value in (features, weight, bias))
    return features.new_empty(()), *gradients  # type: ignore[return-value]


def _refusal(features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> str | None:
    if len(features) == 0:
        return "no positions"
    return not_float32(features=features, weight=weight, bias=bias)


# Not public: `modules.code_loss` calls it. features `[N, C]`, weight `[K, C]`, bias `[K]` and codes
# `[N]` to the mean loss in nats, 0-d, and its gradients.
CODE_CROSS_ENTROPY = register(
    "code_cross_entropy",
    "(Tensor features, Tensor weight, Tensor bias, Tensor codes) "
    "-> (Tensor loss, Tensor dfeatures, Tensor dweight, Tensor dbias)",
    reference=code_cross_entropy_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    refusal=_refusal,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(
    ctx: Any, dloss: Tensor | None, *of_gradients: Tensor | None
) -> tuple[Tensor | None, ...]:
    if any(gradient is not None for gradient in of_gradients):
        raise NotImplementedError(
            "code_cross_entropy: expected a first derivative, got a second one. Take "
            "`F.cross_entropy` of the model's logits."
        )
    if dloss is None:
        return None, None, None, None
    return *(gradient * dloss for gradient in ctx.saved_tensors), None


torch.library.register_autograd(
    "vqvae2_fast::code_cross_entropy", _backward, setup_context=_setup_context, lib=LIBRARY
)
