"""Muon: steps of matrices and convolutions in directions that are made orthogonal.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024),
https://kellerjordan.github.io/posts/muon/, with the scale of https://arxiv.org/abs/2502.16982,
equation 4. `torch.optim.Muon` takes no convolutions, and computes in bfloat16, which most
processors emulate.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae2_fast.training.network import local, own_rows, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Muon", "orthogonalized"]

# Five give emoji32's top prior no fewer bits per image, and orthogonalising takes 1.4 times as
# long.
_STEPS = 3
_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the quintic that takes singular values towards 1


def orthogonalized(matrices: Tensor) -> Tensor:
    """The matrices with singular values near 1, those above about 1/20 of the Frobenius norm.

    Three steps of the Newton–Schulz iteration on X Xᵀ, which is small: X takes part in the first
    and in the last product only.

    Args:
        matrices: [B, M, N], float32 or float64.

    Returns:
        [B, M, N]; zeros stay zeros.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalized(matrices.mT).mT
    gram = matrices @ matrices.mT  # [B, M, M]
    square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]  # of the Frobenius norm
    square = square.clamp(min=torch.finfo(gram.dtype).tiny)
    gram, factor = gram / square, square.rsqrt()
    one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    product = one * factor
    for step in range(_STEPS):
        quintic = torch.baddbmm(_A * one + _B * gram, gram, gram, alpha=_C)
        product = quintic @ product
        if step + 1 < _STEPS:
            gram = quintic @ gram @ quintic
    return product @ matrices


class Muon(torch.optim.AdamW):
    """Muon for the weights that `orthogonalize` names, AdamW for the others.

    A convolution's weight is taken as a matrix: its first dimension by all the others. Steps have
    the size of AdamW's, so learning rates are like AdamW's too, or a little larger.

    Weights may be sharded by FSDP2. All processes then gather and orthogonalise the same gradients,
    of one weight after another, and each moves its own rows.

    Args:
        orthogonalize: Weights of two or more dimensions.
        others: Biases, gains, embeddings and output layers.
        lr: Peak learning rate.
        weight_decay: Of the weights in `orthogonalize`.
        momentum: Decay of the average of the gradients, in Nesterov's form.
        betas: Of AdamW.
    """

    def __init__(
        self,
        orthogonalize: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(orthogonalize), "weight_decay": weight_decay, "momentum": momentum},
            {"params": list(others), "weight_decay": 0.0},
        ]
        super().__init__(
            [group for group in groups if group["params"]], lr=lr, betas=betas, fused=True
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; the gradients of the orthogonalised weights are used up (None)."""
        if closure is not None:
            raise NotImplementedError("expected no closure, got one.")
        for group in self.param_groups:
            if "momentum" in group:
                self._step_orthogonally(group)
        return super().step()

    def _step_orthogonally(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        averages = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        # One product for all of a shape; of sharded weights only one is whole at a time.
        alike = defaultdict[tuple[int, int, int], list[int]](list)
        for index, weight in enumerate(weights):
            alone = 0 if local(weight) is weight else index
            alike[len(weight), weight.numel() // len(weight), alone].append(index)
        for (rows, columns, _), indices in alike.items():
            stacked = torch.stack([whole(ahead[i]).reshape(rows, columns) for i in indices])
            size = group["lr"] * 0.2 * max(rows, columns) ** 0.5
            for index, direction in zip(indices, orthogonalized(stacked), strict=True):
                weight = weights[index]
                own = own_rows(direction.view(weight.shape), weight)
                local(weight).sub_(own, alpha=size)
        for weight in weights:
            weight.grad = None  # AdamW's step leaves them alone
