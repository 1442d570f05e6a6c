"""`code_cross_entropy`: a prior's loss directly from its features, with kernels for training.

Sizes: N positions, C channels, K codes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops import _training
from vqvae2_fast.ops._checks import other_dtype
from vqvae2_fast.ops._registry import BY_DESIGN, register

__all__ = ["CODE_CROSS_ENTROPY", "code_cross_entropy", "code_cross_entropy_reference"]


def code_cross_entropy_reference(
    features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = F.linear(features, weight, bias)  # [N, K]
    loss = F.cross_entropy(logits, codes)
    # d nats / d logits = softmax - one-hot
    dlogits = torch.softmax(logits, dim=1)
    dlogits.scatter_add_(1, codes[:, None], dlogits.new_tensor(-1.0).expand(len(codes), 1))
    dlogits /= len(codes)
    return loss, dlogits @ weight, dlogits.t() @ features, dlogits.sum(0)


def _fake(
    features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dfeatures, dweight, dbias = (value.new_empty(value.shape) for value in (features, weight, bias))
    return features.new_empty(()), dfeatures, dweight, dbias


def _why_not(features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> str | None:
    products = features.numel() * len(weight)
    # Without positions the mean is NaN; PyTorch returns it.
    if products == 0 or not _training.is_training_call(
        features, weight, bias, products=products, least=1, while_compiling=False
    ):
        return BY_DESIGN
    return other_dtype((torch.float32,), features=features, weight=weight, bias=bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(
    ctx: Any, dloss: Tensor | None, *of_gradients: Tensor | None
) -> tuple[Tensor | None, ...]:
    if any(gradient is not None for gradient in of_gradients):
        raise NotImplementedError(
            "expected a first derivative, got a second one. Take "
            "`F.cross_entropy` of the model's logits."
        )
    if dloss is None:
        return None, None, None, None
    return *(gradient * dloss for gradient in ctx.saved_tensors), None


# features `[N, C]`, weight `[K, C]`, bias `[K]` and codes `[N]` to the mean loss in nats, 0-d, and
# its gradients.
CODE_CROSS_ENTROPY = register(
    "code_cross_entropy",
    "(Tensor features, Tensor weight, Tensor bias, Tensor codes) "
    "-> (Tensor loss, Tensor dfeatures, Tensor dweight, Tensor dbias)",
    reference=code_cross_entropy_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not,
    gradient=(_setup_context, _backward),
    private=True,
)


def code_cross_entropy(features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> Tensor:
    """Mean negative log-likelihood of the codes under logits `features weightᵀ + bias`.

    When training in float32 on a CPU, a kernel computes the gradients in the same pass and stores
    neither the logits nor their gradient, which saves 2·N·K floats. Elsewhere it is
    `F.cross_entropy`. Private: the priors call it.

    Args:
        features: `[N, C]`.
        weight: `[K, C]`.
        bias: `[K]`.
        codes: int64 `[N]`, each in 0..K-1 (checked by the caller).

    Returns:
        0-d, float32, nats per code.
    """
    if CODE_CROSS_ENTROPY.takes(features, weight, bias, codes):
        loss: Tensor = CODE_CROSS_ENTROPY.kernel(features, weight, bias, codes)[0]
        return loss
    return F.cross_entropy(F.linear(features, weight, bias).float(), codes)
