import pytest
import torch

from vqvae2_fast.data import in_order
from vqvae2_fast.data.groups import (
    GroupedImages,
    equal_groups,
    group_names,
    groups_in_turn,
    labels_of_prior,
    names_of_prior,
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


def test_equal_groups_are_counted():
    assert equal_groups(("Coat - 0", "Bag - 0", "Coat - 1", "Bag - 1")) == (2, 2)


@pytest.mark.parametrize("names", [NAMES, ("Coat", "Bag"), ()], ids=["unequal", "single", "none"])
def test_other_groups_are_refused(names):
    with pytest.raises(ValueError, match="parts: expected every class to have the same number of"):
        equal_groups(names)


def test_a_prior_has_a_label_for_each_part_of_its_classes():
    names = ("Coat - 0", "Bag - 0", "Coat - 1", "Bag - 1")
    assert labels_of_prior(names, 2, 2).tolist() == [3, 5, 4, 6, 2]


def test_the_classes_of_a_prior_are_its_labels():
    assert labels_of_prior(("Coat", "Bag"), 2, 2).tolist() == [0, 1, 2]


def test_a_part_is_of_the_class_that_was_split_even_if_that_has_a_group():
    names = ("dog - small - 0", "dog - small - 1", "dog - large - 0", "dog - large - 1")
    assert equal_groups(names) == (2, 2)
    assert names_of_prior(names, 2, 2) == ["dog - small"] * 2 + ["dog - large"] * 2
    assert labels_of_prior(names, 2, 2).tolist() == [3, 4, 5, 6, 2]
    assert labels_of_prior(names, 2).tolist() == [0, 0, 1, 1, 2]  # if no part is to be told
    assert labels_of_prior(names, 1).tolist() == [0, 0, 0, 0, 1]  # groups
