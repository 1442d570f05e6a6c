"""Part of a set of images as a set."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.data import ImageTensorDataset, in_order
from vqvae2_fast.data.images import ImageSubset, evenly, spread_evenly


def ten() -> ImageTensorDataset:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 2, 2)
    return ImageTensorDataset(images.contiguous(), torch.arange(10) % 2, ("even", "odd"))


def test_a_subset_is_a_set_of_the_images_at_its_rows():
    subset = ImageSubset(ten(), torch.tensor([7, 2, 2]))
    ((images, labels),) = in_order(subset, 8)
    assert ((images[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [7, 2, 2]
    assert labels.tolist() == subset.labels.tolist() == [1, 0, 0]
    assert (len(subset), subset.image_shape, subset.class_names) == (3, (1, 2, 2), ("even", "odd"))
    with pytest.raises(IndexError):
        subset[3]


def test_images_are_spread_from_the_first_to_the_last():
    subset = spread_evenly(ten(), 4)
    assert [int(image[0, 0, 0]) for image, _ in subset] == [0, 3, 6, 9]


def test_a_set_that_is_small_enough_stays_as_it_is():
    images = ten()
    assert spread_evenly(images, 10) is images


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(10, 4, [0, 3, 6, 9]), (3, 5, [0, 1, 2]), (7, 1, [0]), (2**24 + 4, 2, [0, 2**24 + 3])],
)
def test_numbers_go_from_the_first_to_the_last(count, most, expected):
    assert evenly(count, most).tolist() == expected
