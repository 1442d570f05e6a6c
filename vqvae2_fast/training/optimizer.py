"""What moves the weights of a run: its optimiser, and the average of the weights.

Muon makes the steps of matrices and convolutions orthogonal. K. Jordan et al., "Muon: An optimizer
for hidden layers in neural networks" (2024), https://kellerjordan.github.io/posts/muon/, with the
scale of https://arxiv.org/abs/2502.16982, equation 4. `torch.optim.Muon` takes no convolutions, and
computes in bfloat16, which most processors emulate.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae2_fast.training.sharded import local, own_rows, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vqvae2_fast.training.config import OptimizerName, TrainConfig

__all__ = [
    "OPTIMIZERS",
    "Muon",
    "PolyakAverage",
    "hidden_matrices",
    "kept_moments",
    "make_optimizer",
    "orthogonalized",
]


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


def _muon(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    hidden = hidden_matrices(model)
    weights = _trained(model)
    return Muon(
        [weight for weight in weights if weight in hidden],
        [weight for weight in weights if weight not in hidden],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )


def _sgd(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(_groups(model, config), lr=config.learning_rate, momentum=0.9)


def _adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    # 0.95 forgets the early, large gradients of a short run sooner than AdamW's 0.999.
    # fused: one pass over weights and moments instead of ten.
    return torch.optim.AdamW(
        _groups(model, config), lr=config.learning_rate, betas=(0.9, 0.95), fused=True
    )


_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class _Choice:
    """An optimiser that a run can choose.

    Args:
        make: From the model and the settings; its decay spares biases, gains and other vectors.
        moments: Tensors of a weight's size that it keeps for each weight of two or more dimensions.
        kept: The names of the tensors that it keeps of each weight of a group.
    """

    make: Callable[[nn.Module, TrainConfig], torch.optim.Optimizer]
    moments: int
    kept: Callable[[dict[str, Any]], set[str]]


# An optimiser is a function and a line here, and a name in `config.OptimizerName`.
OPTIMIZERS: dict[OptimizerName, _Choice] = {
    "adamw": _Choice(_adamw, 2, lambda group: _ADAMW),
    "momentum": _Choice(_sgd, 1, lambda group: {"momentum_buffer"}),
    # Two moments for embeddings and output layers, which are few.
    "muon": _Choice(_muon, 1, lambda group: {"momentum"} if "momentum" in group else _ADAMW),
}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a run."""
    return OPTIMIZERS[config.optimizer].make(model, config)


def kept_moments(
    optimizer: torch.optim.Optimizer, config: TrainConfig
) -> dict[nn.Parameter, set[str]]:
    """The names of the tensors that a run's optimiser keeps of each weight that it has moved."""
    return {
        weight: OPTIMIZERS[config.optimizer].kept(group)
        for group in optimizer.param_groups
        for weight in group["params"]
    }


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    weights = _trained(model)
    return [
        {"params": [w for w in weights if _is_matrix(w)], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if not _is_matrix(w)], "weight_decay": 0.0},
    ]


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Weights of matrices and convolutions, other than those of embeddings and output layers."""
    embeddings = {part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
    head = {weight for name, weight in model.named_parameters() if name.startswith("head.")}
    return set(filter(_is_matrix, model.parameters())) - embeddings - head


def _is_matrix(weight: nn.Parameter) -> bool:
    """Whether a weight is no vector; gains of weight normalisation are vectors `[C, 1, 1, 1]`."""
    return weight.ndim >= 2 and weight.numel() > len(weight)


class PolyakAverage:
    """average ← d·average + (1 − d)·weight after each step, with d = min(decay, (1 + t)/(10 + t)).

    The early steps' smaller d forgets the initial weights, as in TensorFlow's
    `ExponentialMovingAverage(num_updates)`, so short runs can use the decay of long ones. Buffers
    (a codebook is its own moving average) are not averaged. `torch.optim.swa_utils.AveragedModel`
    would give other bits: its first update copies the weights, and each one copies the buffers.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: weight.detach().clone() for name, weight in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average after step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [weight.detach() for weight in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights, inside the block."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, weight in model.named_parameters():
            kept = weight.detach().clone()
            weight.copy_(self.weights[name])  # in place: a sharded weight is a part of a buffer
            self.weights[name].copy_(kept)
