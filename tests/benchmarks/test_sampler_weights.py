"""`benchmarks/sampler_weights.py`: which records it takes."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.models import tiny_pipeline

import vqvae2_fast


class Vqvae:
    def encode(self, images):
        return [torch.zeros(len(images), 2, 2, dtype=torch.int64)]


@pytest.mark.parametrize("count", [1, 64, 100])
def test_as_many_emoji_are_taken_as_wanted(script, count):
    batches = list(script("sampler_weights").emoji_codes(Vqvae(), 64, count))
    assert sum(len(maps[0]) for maps, _ in batches) == count
    assert sum(len(labels) for _, labels in batches) == count


def test_count_holds_for_the_emoji_of_a_preset(script, monkeypatch, capsys):
    weights, counts = script("sampler_weights"), []
    monkeypatch.setattr(vqvae2_fast, "from_preset", lambda name: tiny_pipeline())
    monkeypatch.setattr(weights, "calibrate", lambda prior, batches: None)

    def emoji_codes(vqvae, batch, count=None, split="held_out"):
        counts.append((split, count))
        return []

    monkeypatch.setattr(weights, "emoji_codes", emoji_codes)
    monkeypatch.setattr(weights, "compare", lambda prior, level, batches: {"cpu": (1.0, 0.0)})
    monkeypatch.setattr(sys, "argv", ["sampler_weights.py", "--count", "5"])
    weights.main()
    assert ("held_out", 5) in counts
