"""Likelihood, entropy and use of codes against known answers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.models import SMALL_TOP

from vqvae2_fast.metrics import (
    codebook_use,
    collision_rate,
    marginal_entropy,
    prior_labels,
    prior_likelihood,
)
from vqvae2_fast.models.pixelsnail import PixelSNAIL


def prior(num_classes: int = 0) -> PixelSNAIL:
    torch.manual_seed(0)
    return PixelSNAIL(replace(SMALL_TOP, size=(2, 3), num_classes=num_classes)).eval()


def test_a_uniform_prior_costs_log2_k_bits_a_code():
    model = prior()
    with torch.no_grad():
        model.head.kernel.weight_g.zero_()
        model.head.bias.zero_()
    codes = torch.randint(8, (5, 2, 3), generator=torch.Generator().manual_seed(1))
    result = prior_likelihood(model, [([codes], torch.full((5,), -1))], 0)
    assert result.nats_per_code == pytest.approx(math.log(8))
    assert result.bits_per_code == pytest.approx(3)
    assert result.bits_per_image == pytest.approx(18)


def test_likelihood_is_that_of_the_models_own_loss_whatever_the_batches():
    model = prior()
    codes = torch.randint(8, (5, 2, 3), generator=torch.Generator().manual_seed(2))
    labels = torch.full((5,), -1)
    result = prior_likelihood(model, [([codes[:4]], labels[:4]), ([codes[4:]], labels[4:])], 0)
    with torch.no_grad():
        assert result.nats_per_code == pytest.approx(model.loss(codes).item(), rel=1e-6)


def test_images_without_a_label_count_as_no_class():
    labels = prior_labels(prior(num_classes=3), torch.tensor([0, -1, 2]))
    assert labels.tolist() == [0, 3, 2]
    assert prior_labels(prior(), torch.tensor([0, -1, 2])) is None


def test_no_codes_are_refused():
    with pytest.raises(ValueError, match="at least one batch of codes, got none"):
        prior_likelihood(prior(), [], 0)


def test_marginal_entropy_of_known_histograms():
    assert marginal_entropy(torch.arange(8).view(2, 4), 8) == pytest.approx(3)
    assert marginal_entropy(torch.zeros(4, 2, dtype=torch.int64), 8) == 0
    # 1/2, 1/4, 1/4: 1.5 bits
    assert marginal_entropy(torch.tensor([0, 0, 5, 7]), 8) == pytest.approx(1.5)


def test_codebook_use_of_known_histograms():
    use = codebook_use(torch.tensor([[0, 0, 5, 7]]), 8)
    assert (use.used, use.share) == (3, 3 / 8)
    assert use.perplexity == pytest.approx(2**1.5)
    assert codebook_use(torch.arange(16), 16).perplexity == pytest.approx(16)


@pytest.mark.parametrize("codes", [[0, 8], [-1, 3]])
def test_codes_of_another_codebook_are_refused(codes):
    low, high = codes
    with pytest.raises(ValueError, match=rf"codes in 0\.\.7, got values in {low}\.\.{high}"):
        codebook_use(torch.tensor(codes), 8)


def test_collision_rate_counts_items_whose_codes_another_has():
    codes = torch.tensor([[1, 2], [2, 1], [1, 2], [1, 2], [0, 0]])
    assert collision_rate(codes) == pytest.approx(2 / 5)
    assert collision_rate(codes[:2]) == 0


@pytest.mark.parametrize("size", [(5,), (0, 3), (2, 3, 4)])
def test_a_collision_rate_of_other_than_items_is_refused(size):
    with pytest.raises(ValueError, match=r"expected codes \[N, Q\]"):
        collision_rate(torch.zeros(size, dtype=torch.int64))


def test_a_codebook_without_codes_is_refused():
    with pytest.raises(ValueError, match="expected num_embeddings .* >= 1, got 0"):
        codebook_use(torch.zeros(0, dtype=torch.int64), 0)
