"""What each label of a prior with two classes of three parts and two variants stands for."""

import torch

from vqvae2_fast.models.label_layout import LabelLayout

LAYOUT = LabelLayout(num_classes=2, num_subclasses=3, num_variants=2)
NO_CLASS = 2
CLASSES = [0, 0, 0, 1, 1, 1]
OF_PARTS = [3, 4, 5, 6, 7, 8]
OF_VARIANTS = [[9, 10, 11], [12, 13, 14]]  # each of class 0, class 1 and no class


def test_every_label_is_counted_once():
    assert LAYOUT.count == 15
    assert LabelLayout(2).count == 3
    assert LabelLayout(0).count == 0


def test_words_follow_all_other_labels():
    layout = LabelLayout(num_classes=2, num_subclasses=3, num_variants=2, num_words=4)
    assert (layout.first_word, layout.count) == (LAYOUT.count, LAYOUT.count + 4)


def test_parts_follow_no_class():
    parts = torch.tensor([0, 1, 2, 0, 1, 2])
    assert LAYOUT.of_part(torch.tensor(CLASSES), parts).tolist() == OF_PARTS
    labels = torch.arange(LAYOUT.count)
    assert labels[LAYOUT.is_part(labels)].tolist() == OF_PARTS
    assert LAYOUT.class_of_part(torch.tensor(OF_PARTS)).tolist() == CLASSES


def test_each_variant_has_labels_of_all_classes_and_of_none():
    labels = torch.tensor([0, 1, NO_CLASS])
    for variant, expected in enumerate(OF_VARIANTS, 1):
        assert LAYOUT.of_variant(labels, torch.tensor(variant)).tolist() == expected
    of_parts = LAYOUT.of_variant(torch.tensor(OF_PARTS), torch.tensor(2))
    assert of_parts.tolist() == [12, 12, 12, 13, 13, 13]


def test_a_variant_without_its_class_is_still_that_variant():
    labels = torch.arange(LAYOUT.count)
    assert LAYOUT.without_class(labels).tolist() == [NO_CLASS] * 9 + [11] * 3 + [14] * 3
