"""Classes split into equal parts of images that look alike."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.data import ImageTensorDataset, groups, in_order, sources
from vqvae2_fast.data.groups import Subclasses
from vqvae2_fast.data.sources import DataOptions, open_images, open_splits


def grey(values, labels, names=("cat", "dog"), side=2) -> ImageTensorDataset:
    """Images of one grey each."""
    pixels = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, side, side)
    return ImageTensorDataset(pixels.contiguous(), torch.tensor(labels), names)


def test_the_parts_of_a_class_are_equally_large():
    values = torch.randint(256, (31,), generator=torch.Generator().manual_seed(0)).tolist()
    images = grey(values, [0] * 21 + [1] * 10)
    split = Subclasses.of(images, 3).split(images)
    assert torch.bincount(split.labels).tolist() == [7, 7, 7, 3, 3, 4]


def test_images_of_a_part_look_alike():
    images = grey([10, 200, 12, 205, 11, 210], [0] * 6, names=("cat",))
    labels = Subclasses.of(images, 2).split(images).labels.tolist()
    assert labels[::2] == [labels[0]] * 3
    assert labels[1::2] == [1 - labels[0]] * 3


@pytest.mark.parametrize("side", [16, 17, 40])
def test_other_images_fall_into_the_part_of_those_like_them(side):
    train = grey([0, 10, 200, 210, 50, 60, 90, 99], [0] * 4 + [1] * 4, side=side)
    parts = Subclasses.of(train, 2)
    dark, bright, dog = parts.split(grey([5, 255, 20], [0, 0, 1], side=side)).labels.tolist()
    train_labels = parts.labels.tolist()
    assert [dark, bright, dog] == [train_labels[0], train_labels[2], train_labels[4]]


def test_names_tell_class_and_part_and_no_class_stays_none():
    images = grey([1, 2, 3, 4, 5], [0, 0, 1, 1, -1])
    split = Subclasses.of(images, 2).split(images)
    assert split.class_names == ("cat - 0", "cat - 1", "dog - 0", "dog - 1")
    assert split.labels[-1] == split[4][1] == -1
    ((pixels, labels),) = in_order(split, 8)
    assert labels.tolist() == split.labels.tolist()
    assert torch.equal(pixels, next(in_order(images, 8))[0])


def test_a_set_without_classes_is_one_class():
    images = grey([1, 2, 200, 201], [-1] * 4, names=())
    split = Subclasses.of(images, 2).split(images)
    assert split.class_names == ("images - 0", "images - 1")
    assert sorted(split.labels.tolist()) == [0, 0, 1, 1]


def test_held_out_images_are_split_as_the_training_images_are():
    def opened(split, subclasses=0):
        return open_images(DataOptions(subclasses=subclasses), split, 3, (16, 16))

    held_out = opened("held_out", 2)
    expected = Subclasses.of(opened("train"), 2).split(opened("held_out"))
    assert held_out.class_names == opened("train", 2).class_names == expected.class_names
    assert torch.equal(held_out.labels, expected.labels)


def test_training_images_are_opened_and_read_once(monkeypatch):
    opened, read = [], []
    load, reduce = sources.load_emoji, groups._features
    monkeypatch.setattr(
        sources, "load_emoji", lambda split, *_, **__: opened.append(split) or load(split)
    )
    monkeypatch.setattr(
        groups, "_features", lambda images: read.append(len(images)) or reduce(images)
    )
    found = open_splits(DataOptions(subclasses=2), ("held_out", "train"), 3, (32, 32))
    assert sorted(opened) == ["held_out", "train"]
    assert sorted(read) == sorted(map(len, found.values()))


def test_training_images_are_in_the_parts_that_their_features_say():
    values = torch.randint(256, (31,), generator=torch.Generator().manual_seed(0)).tolist()
    images = grey(values, [0] * 20 + [-1] + [1] * 10)
    split = Subclasses.of(images, 3)
    assert torch.equal(split.labels, split.split(images).labels)


@pytest.mark.parametrize(
    ("images", "count", "message"),
    [
        (grey([1, 2, 3], [0, 0, 1]), 2, "2 images of each class or more, and 'dog' has 1"),
        (grey([1, 2], [0, 1]), -1, "expected subclasses .* >= 1, got -1"),
        (grey([1, 9, 5, 5, 5, 5], [0, 0, 1, 1, 1, 1]), 2, "images that differ, .* 'dog' are equal"),
    ],
)
def test_bad_counts_are_refused(images, count, message):
    with pytest.raises(ValueError, match=message):
        Subclasses.of(images, count)


def test_images_of_other_classes_are_refused():
    parts = Subclasses.of(grey([1, 2], [0, 1]), 1)
    with pytest.raises(ValueError, match=r"that were split \(.*cat, dog.*\), got .*cat, cow"):
        parts.split(grey([1, 2], [0, 1], names=("cat", "cow")))
