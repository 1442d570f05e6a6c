import pytest
import torch

from vqvae2_fast.data import in_order
from vqvae2_fast.data.groups import (
    GroupedImages,
    group_names,
    groups_in_turn,
    spread_over_groups,
)
from vqvae2_fast.data.images import ImageTensorDataset

NAMES = ("Food - fruit", "Animals - bird", "Food - drink", "Flags")


def test_groups_are_in_the_order_of_their_first_class():
    assert group_names(NAMES) == ("Food", "Animals", "Flags")


@pytest.mark.parametrize("read", ["labels", "items", "batches"])
def test_labels_are_those_of_groups_and_no_class_stays_none(read):
    images = ImageTensorDataset(
        torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.tensor([2, 0, 1, -1, 3]), NAMES
    )
    grouped = GroupedImages(images)
    found = {
        "labels": lambda: grouped.labels.tolist(),
        "items": lambda: [grouped[i][1] for i in range(len(grouped))],
        "batches": lambda: torch.cat([labels for _, labels in in_order(grouped, 2)]).tolist(),
    }
    assert found[read]() == [0, 0, 1, -1, 2]


def test_images_are_the_same():
    pixels = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    grouped = GroupedImages(ImageTensorDataset(pixels, torch.tensor([1, 0]), NAMES))
    assert grouped.image_shape == (1, 2, 2)
    assert torch.equal(grouped[1][0], pixels[1])


def test_classes_are_spread_over_each_group():
    assert spread_over_groups(NAMES, 4) == [[0, 0, 2, 2], [1, 1, 1, 1], [3, 3, 3, 3]]


def test_groups_take_turns():
    assert groups_in_turn(NAMES) == [0, 1, 3, 2]
    assert groups_in_turn(("a", "b", "c")) == [0, 1, 2]
