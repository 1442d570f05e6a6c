"""Rejection sampling: the rule, scores, and the shares of a trade-off curve."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.models.classifier import Classifier, ClassifierConfig
from vqvae2_fast.sampling.rejection import RejectionRule, class_probability, keep_share


def test_the_best_of_each_group_stay_and_ties_take_the_earlier():
    rule = RejectionRule(2, 4)
    scores = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.2, 0.2, 0.2, 0.2])
    assert rule.kept(scores).tolist() == [False, True, True, False, True, True, False, False]


def test_a_threshold_keeps_what_reaches_it():
    kept = RejectionRule(threshold=0.5).kept(torch.tensor([0.49, 0.5, 1.0]))
    assert kept.tolist() == [False, True, True]


@pytest.mark.parametrize("values", [(0, 4), (5, 4), (1, 1, 1.5), (1, 2, 0.5)])
def test_rules_that_keep_nothing_or_too_much_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        RejectionRule(*values)


def test_the_probability_is_that_of_the_own_class():
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig((8, 8), 1, 3, "small", 8)).eval()
    images, labels = torch.rand(4, 1, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 2])
    expected = model(images).softmax(1)[torch.arange(4), labels]
    assert torch.allclose(class_probability(model, images, labels), expected)
    with pytest.raises(ValueError, match=r"labels in 0\.\.2, .* got values in 1\.\.3"):
        class_probability(model, images, labels + 1)


def test_shares_are_of_each_class_and_nested():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(300, generator=generator), torch.arange(300) % 3
    quarter = keep_share(scores, labels, 0.25)
    assert torch.bincount(labels[quarter]).tolist() == [25, 25, 25]
    for label in range(3):
        own = labels == label
        assert set(scores[quarter][labels[quarter] == label].tolist()) == set(
            scores[own].topk(25).values.tolist()
        )
    assert set(keep_share(scores, labels, 0.1).tolist()) <= set(quarter.tolist())
    assert keep_share(scores, labels, 1.0).tolist() == list(range(300))
    with pytest.raises(ValueError, match=r"share in \(0, 1\]"):
        keep_share(scores, labels, 0)
