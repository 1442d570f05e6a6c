"""`stream_images`: batches of samples, each the same to the last bit in any batch."""

import pytest
import torch
from helpers.models import tiny_pipeline

from vqvae2_fast.sampling import sample_images, sample_levels, stream_images

SETTINGS = {"seed": 3, "temperature": [0.9, 0.7], "top_k": [None, 5], "guidance_scale": 2.0}


def test_batches_come_in_order_and_the_last_is_smaller():
    batches = list(stream_images(tiny_pipeline(0), 5, batch_size=2, first_sample=7))
    assert [(batch.first_sample, len(batch)) for batch in batches] == [(7, 2), (9, 2), (11, 1)]


def test_a_sample_is_the_same_to_the_last_bit_in_any_batch():
    pipeline, labels = tiny_pipeline(), torch.arange(6) % 3
    alone = list(stream_images(pipeline, 6, batch_size=1, labels=labels, **SETTINGS))
    together = list(stream_images(pipeline, 6, batch_size=6, labels=labels, **SETTINGS))[0]
    assert torch.equal(torch.cat([batch.images for batch in alone]), together.images)
    assert [batch.log_prob[0] for batch in alone] == together.log_prob
    for level, maps in enumerate(together.codes):
        assert torch.equal(torch.cat([batch.codes[level] for batch in alone]), maps)


def test_images_are_those_of_sample_images_but_for_rounding():
    pipeline, labels = tiny_pipeline(), torch.tensor([0, 1, 2])
    batch = next(stream_images(pipeline, 3, labels=labels, first_sample=4, **SETTINGS))
    expected = sample_images(pipeline, 3, labels=labels, first_sample=4, **SETTINGS)
    torch.testing.assert_close(batch.images, expected, atol=1e-5, rtol=0)


def test_log_probabilities_are_the_sums_over_each_map():
    pipeline = tiny_pipeline(0)
    batch = next(stream_images(pipeline, 2, seed=1))
    _, log_probs = sample_levels(pipeline, 2, seed=1, return_log_prob=True)
    sums = torch.stack([level.double().sum((1, 2)) for level in log_probs], dim=1)
    torch.testing.assert_close(torch.tensor(batch.log_prob, dtype=torch.float64), sums)
    assert (sums < 0).all()


def test_known_codes_go_with_their_samples():
    known = torch.full((3, 4, 4), -1)
    known[:, 0] = torch.arange(3).view(3, 1)
    batches = stream_images(tiny_pipeline(0), 3, batch_size=2, known=[known, None])
    rows = torch.cat([batch.codes[0][:, 0] for batch in batches])
    assert torch.equal(rows, known[:, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count >= 0 and batch_size >= 1, got -1 and 64"),
        ({"count": 2, "labels": torch.tensor([0])}, "labels of 2 rows, one per sample, got 1"),
        ({"count": 2, "known": [None, torch.zeros(3, 8, 8)]}, "known of 2 rows, .* got 3"),
    ],
)
def test_a_wrong_request_is_told_before_the_first_batch(arguments, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        stream_images(tiny_pipeline(), **arguments)
