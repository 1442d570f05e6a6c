"""The optimisers that a run can choose: a new one is a name here and a line in `make_optimizer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import nn

    from vqvae2_fast.training.config import TrainConfig

__all__ = ["OptimizerName", "make_optimizer", "moments_of"]

OptimizerName = Literal["adamw", "momentum"]


def moments_of(config: TrainConfig) -> int:
    """Tensors of a weight's size that the optimiser keeps for each weight."""
    return 1 if config.optimizer == "momentum" else 2


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser; its decay spares biases, gains and other vectors."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "momentum":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    # 0.95 forgets the early, large gradients of a short run sooner than AdamW's 0.999.
    # fused: one pass over weights and moments instead of ten.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
