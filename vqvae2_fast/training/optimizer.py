"""The optimisers that a run can choose: a new one is a name here and a line in `make_optimizer`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from vqvae2_fast.training.muon import Muon

if TYPE_CHECKING:
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["hidden_matrices", "kept_moments", "make_optimizer", "moments_of"]


def moments_of(config: TrainConfig) -> int:
    """Tensors of a weight's size that the optimiser keeps for each weight of two or more dimensions
    (`muon` keeps two for embeddings and output layers, which are few)."""
    return 2 if config.optimizer == "adamw" else 1


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser; its decay spares biases, gains and other vectors."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if config.optimizer == "muon":
        hidden = hidden_matrices(model)
        return Muon(
            [weight for weight in weights if weight in hidden],
            [weight for weight in weights if weight not in hidden],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
    groups = [
        {"params": [w for w in weights if _is_matrix(w)], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if not _is_matrix(w)], "weight_decay": 0.0},
    ]
    if config.optimizer == "momentum":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    # 0.95 forgets the early, large gradients of a short run sooner than AdamW's 0.999.
    # fused: one pass over weights and moments instead of ten.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def kept_moments(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, set[str]]:
    """The names of the tensors that an optimiser keeps of each weight that it has moved."""
    if isinstance(optimizer, torch.optim.SGD):
        names, orthogonal = {"momentum_buffer"}, set[str]()
    else:
        names, orthogonal = {"step", "exp_avg", "exp_avg_sq"}, {"momentum"}
    return {
        weight: orthogonal if isinstance(optimizer, Muon) and "momentum" in group else names
        for group in optimizer.param_groups
        for weight in group["params"]
    }


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Weights of matrices and convolutions, other than those of embeddings and output layers."""
    embeddings = {part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
    head = {weight for name, weight in model.named_parameters() if name.startswith("head.")}
    return set(filter(_is_matrix, model.parameters())) - embeddings - head


def _is_matrix(weight: nn.Parameter) -> bool:
    """Whether a weight is no vector; gains of weight normalisation are vectors `[C, 1, 1, 1]`."""
    return weight.ndim >= 2 and weight.numel() > len(weight)
