"""The embedded avatars: their splits and labels, and that they are what the generator draws."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.data import load_avatars, load_small_avatars


def test_the_splits_share_the_avatars():
    train, held_out, both = map(load_small_avatars, ("train", "held_out", "all"))
    assert both.images.shape == (4800, 3, 32, 32)
    assert len(train) + len(held_out) == 4800
    assert both.labels.bincount().tolist() == [600] * 8
    assert 0.05 < len(held_out) / 4800 < 0.15


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split"):
        load_small_avatars("test")


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_sheet_holds_what_the_generator_draws(split):
    pytest.importorskip("dicebear", reason="draws with the extra `avatars`")
    embedded = load_small_avatars(split)
    drawn = load_avatars(split, 32, styles=embedded.class_names, count=40, num_workers=0)
    for label in range(8):
        found = drawn.images[drawn.labels == label].float()
        own = embedded.images[embedded.labels == label][: len(found)].float()
        assert 10 * torch.log10(255**2 / (own - found).square().mean()) > 35  # dB
