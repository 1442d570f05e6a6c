"""What a training would take on cards that are not here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.testing.configs import SMALL_TOP, SMALL_VQVAE
from vqvae2_fast.training import TrainConfig, muon, vqvae_stage
from vqvae2_fast.training.cost import SavedBytes, measure_step, state_bytes
from vqvae2_fast.training.forecast import CARDS, forecast

PRIOR = replace(SMALL_TOP, size=(4, 4), num_output_layers=6, weight_norm=False)
CONFIG = TrainConfig(batch_size=6, accumulate=2, average_decay=0.9)
CARD = CARDS["h100"]


def test_the_parts_are_those_of_the_model():
    model = PixelSNAIL(PRIOR)
    way = forecast(PRIOR, CONFIG, CARD, 1).ways[0]
    state = way.weights + way.gradients + way.moments + way.average
    assert state == state_bytes(model, CONFIG) - sum(b.nbytes for b in model.buffers())


def test_activations_are_those_of_a_real_step():
    model = VQVAE2(SMALL_VQVAE)
    saved, images = SavedBytes(model), torch.zeros(3, 3, 8, 8)
    with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
        VQVAE2.loss(images, model(images))
    way = forecast(SMALL_VQVAE, replace(CONFIG, batch_size=3, accumulate=1), CARD, 1).ways[0]
    assert way.micro_batch == 3
    assert way.activations == pytest.approx(saved.total, rel=0.1)


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

    monkeypatch.setattr(muon, "orthogonalized", orthogonalized)
    measure_step(vqvae_stage(VQVAE2(SMALL_VQVAE), images, images, config), config)
    half = len(moved) // 2
    assert half
    assert moved[:half] == moved[half:]  # the step that allocates the moments, and the timed one


def test_operations_are_two_for_each_weight_and_position():
    found = forecast(PRIOR, CONFIG, CARD, 1)
    kernels = [p.numel() for n, p in PixelSNAIL(PRIOR).named_parameters() if p.ndim == 4]
    # Those that read code maps add rows, and attention multiplies no weights.
    assert found.operations == pytest.approx(2 * 16 * sum(kernels), rel=0.25)


def test_shards_divide_weights_moments_and_average():
    whole, _, sharded, _ = forecast(PRIOR, CONFIG, CARD, 4).ways
    assert (sharded.moments, sharded.average) == (whole.moments // 4, whole.average // 4)
    # Gathered twice and scattered once: half as much again as summed everywhere.
    assert sharded.sent == pytest.approx(1.5 * whole.sent)


def test_muon_gathers_the_gradients_of_sharded_weights():
    whole, _, sharded, _ = forecast(PRIOR, replace(CONFIG, optimizer="muon"), CARD, 4).ways
    assert sharded.sent == pytest.approx(2 * whole.sent)


def test_a_card_has_the_whole_weights_of_two_segments():
    model = PixelSNAIL(PRIOR)
    most = max(sum(p.numel() for p in segment.parameters()) for segment in model.segments())
    whole, _, sharded, _ = forecast(PRIOR, CONFIG, CARD, 4).ways
    assert sharded.weights == whole.weights // 4 + 2 * 4 * most


def test_gradients_are_whole_while_micro_batches_accumulate():
    deep = replace(PRIOR, num_output_layers=60)
    whole, _, sharded, _ = forecast(deep, CONFIG, CARD, 4).ways
    assert (sharded.micro_batch, sharded.gradients) == (3, sharded.weights)
    assert sharded.gradients < whole.gradients
    small = replace(CARD, memory=math.floor((sharded.memory - 1) / 0.9))
    sharded = forecast(deep, CONFIG, small, 4).ways[2]
    assert (sharded.micro_batch, sharded.gradients) == (1, whole.gradients)


def test_bfloat16_halves_activations_and_copies_weights():
    wide = replace(PRIOR, channels=64, residual_channels=64)
    config = replace(CONFIG, batch_size=1, accumulate=1)
    single = forecast(wide, config, CARD, 1).ways[0]
    half = forecast(wide, replace(config, precision="bfloat16"), CARD, 1).ways[0]
    expected = (single.activations + single.weights) / 2
    assert half.activations == pytest.approx(expected, rel=0.02)


def test_recomputing_needs_less_memory_and_more_time():
    kept, again = forecast(PRIOR, replace(CONFIG, steps=1), CARD, 1).ways
    assert again.activations < kept.activations
    assert again.seconds == pytest.approx(kept.seconds * 4 / 3)


def test_micro_batches_shrink_to_the_memory_and_share_the_batch_evenly():
    kept = forecast(PRIOR, CONFIG, CARD, 2).ways[0]
    assert kept.micro_batch == 6
    least = replace(CARD, memory=math.floor((kept.memory - 1) / 0.9))
    assert forecast(PRIOR, CONFIG, least, 2).ways[0].micro_batch == 3
    assert forecast(PRIOR, CONFIG, replace(CARD, memory=1), 2).best is None


def test_more_cards_than_items_are_refused_with_the_nearest_number():
    with pytest.raises(ValueError, match="1 to 12 cards.* got 13; 12 share it evenly"):
        forecast(PRIOR, CONFIG, CARD, 13)
    with pytest.raises(ValueError, match="1 to 12 cards.* got 0"):
        forecast(PRIOR, CONFIG, CARD, 0)
