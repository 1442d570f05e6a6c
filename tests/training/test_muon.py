"""Muon: its directions, its steps, and the weights that it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqvae2_fast.models import VQVAE2, PixelSNAIL, PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.training.config import TrainConfig
from vqvae2_fast.training.optimizer import Muon, make_optimizer, orthogonalized


def by_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """The quintic, three times over each singular value of a matrix of Frobenius norm 1."""
    left, values, right = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (1, 5)])
def test_directions_keep_the_singular_vectors(shape):
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    expected = torch.stack([by_singular_values(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalized(matrices), expected, rtol=1e-9, atol=1e-9)


def test_float32_is_enough_for_matrices_of_low_rank():
    matrix = torch.randn(1, 16, 3) @ torch.randn(1, 3, 40)
    matrix[:, 8:] *= 1e-5
    exact = by_singular_values(matrix[0].double())
    torch.testing.assert_close(orthogonalized(matrix)[0].double(), exact, rtol=1e-4, atol=1e-5)


def test_nothing_moves_without_a_gradient():
    assert not orthogonalized(torch.zeros(2, 3, 4)).any()
    weight, never = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 4))
    kept = never.detach().clone()
    optimizer = Muon([weight, never], [], lr=0.1)
    weight.grad = torch.randn(3, 4)
    optimizer.step()
    assert torch.equal(never, kept)


@torch.no_grad()
def test_steps_are_those_of_the_formula():
    weight = nn.Parameter(torch.randn(4, 2, 3, 3, dtype=torch.float64))
    expected, average = weight.detach().clone(), torch.zeros(4, 18, dtype=torch.float64)
    optimizer = Muon([weight], [], lr=0.01, weight_decay=0.1, momentum=0.9)
    for _ in range(3):
        gradient = torch.randn_like(weight)
        weight.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient.view(4, 18)
        direction = by_singular_values(0.1 * gradient.view(4, 18) + 0.9 * average)
        expected = (1 - 0.01 * 0.1) * expected
        expected -= 0.01 * 0.2 * 18**0.5 * direction.view(4, 2, 3, 3)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-12)


def test_other_weights_take_the_steps_of_adamw():
    alone, beside = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    adamw = torch.optim.AdamW([alone], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    muon = Muon([nn.Parameter(torch.ones(2, 2))], [beside], lr=0.1)
    for _ in range(3):
        alone.grad = torch.randn(5)
        beside.grad = alone.grad.clone()
        adamw.step()
        muon.step()
    assert torch.equal(alone, beside)


def names_of_others(model: nn.Module) -> set[str]:
    muon = make_optimizer(model, TrainConfig(optimizer="muon"))
    others = set(muon.param_groups[-1]["params"])
    return {name for name, weight in model.named_parameters() if weight in others}


def test_embeddings_gains_biases_and_the_output_layer_are_left_to_adamw():
    sizes = {"channels": 8, "residual_channels": 8, "condition_channels": 8, "num_heads": 2}
    prior = PixelSNAIL(PixelSNAILConfig(size=(4, 4), num_embeddings=8, num_classes=3, **sizes))
    others = names_of_others(prior)
    assert all(
        name in others
        for name, _ in prior.named_parameters()
        if name.endswith(("bias", "weight_g", "classes.weight")) or name.startswith("head.")
    )
    kernels = {name for name, _ in prior.named_parameters() if "conv1.kernel.weight_v" in name}
    assert kernels and not kernels & others
    vqvae = VQVAE2(VQVAE2Config((16, 16), hidden_channels=8, residual_channels=8, embedding_dim=4))
    assert all(name.endswith("bias") for name in names_of_others(vqvae))
