"""What a step of a training takes."""

from __future__ import annotations

import torch
from helpers.models import SMALL_VQVAE
from torch import nn

from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.training import TrainConfig, optimizer, vqvae_stage
from vqvae2_fast.training.cost import SavedBytes, measure_step


def test_weights_of_other_networks_are_no_activations():
    judge, images = nn.Conv2d(3, 64, 3).requires_grad_(False), torch.zeros(1, 3, 8, 8)
    saved = SavedBytes(nn.Identity())
    with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
        judge(images.requires_grad_())
    assert saved.total == images.nbytes


def test_the_timed_step_of_muon_has_gradients(monkeypatch):
    config = TrainConfig(batch_size=2, optimizer="muon")
    images = ImageTensorDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    moved = []

    def orthogonalized(matrices):
        moved.append(matrices.shape)
        return matrices

    monkeypatch.setattr(optimizer, "orthogonalized", orthogonalized)
    measure_step(vqvae_stage(VQVAE2(SMALL_VQVAE), images, images, config), config)
    half = len(moved) // 2
    assert half
    assert moved[:half] == moved[half:]  # the step that allocates the moments, and the timed one
