"""What is made of the images that a user names: their size, their channels, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.data.own_images import fitted_side, open_own_images

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, count: int, *sizes: tuple[int, ...], classes: int = 1, first: int = 0):
    """Images of these sizes in turn, in class folders if there is more than one class."""
    generator = np.random.default_rng(0)
    for number in range(first, first + count):
        image = generator.integers(256, size=sizes[number % len(sizes)], dtype=np.uint8)
        path = folder / (f"class {number % classes}" if classes > 1 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_images_are_taken_in_their_own_size_and_none_is_lost(tmp_path):
    write(tmp_path, 60, (24, 24, 3), classes=2)
    found = open_own_images(tmp_path, None, 64)
    assert found.train_set.image_shape == (3, 24, 24)
    assert len(found.train_set) + len(found.held_out) == 60
    assert "24x24 pixels, colour" in found.described
    assert "in 2 classes" in found.described
    assert found.notes == ()


def test_larger_images_are_scaled_to_the_usual_side_and_their_sizes_are_said(tmp_path):
    write(tmp_path, 60, (100, 130, 3), (90, 70, 3))
    found = open_own_images(tmp_path, None, 32)
    assert found.train_set.image_shape == (3, 32, 32)
    assert "90x70 to 100x130 pixels" in found.described


def test_grey_images_stay_grey(tmp_path):
    write(tmp_path, 60, (16, 16))
    assert open_own_images(tmp_path, None, 64).train_set.image_shape == (1, 16, 16)


def test_grey_images_among_coloured_ones_become_coloured(tmp_path):
    write(tmp_path, 60, (16, 16), (16, 16, 3))
    found = open_own_images(tmp_path, None, 64)
    assert found.train_set.image_shape == (3, 16, 16)
    assert "30 of them grey" in found.described


def test_a_few_smaller_images_are_left_out(tmp_path):
    write(tmp_path, 60, (32, 32, 3))
    write(tmp_path, 2, (20, 20, 3), first=60)
    with pytest.warns(UserWarning, match="too small"):
        found = open_own_images(tmp_path, None, 64)
    assert found.train_set.image_shape == (3, 32, 32)
    assert len(found.train_set) + len(found.held_out) == 60


def test_a_class_of_few_images_is_named(tmp_path):
    write(tmp_path / "a", 60, (16, 16, 3))
    write(tmp_path / "b", 2, (16, 16, 3))
    (note,) = open_own_images(tmp_path, None, 64).notes
    assert note.startswith("class b has only ")


@pytest.mark.parametrize(
    ("count", "size", "asked", "expected"),
    [
        (1, (16, 16, 3), None, "expected 50 images or more, got 1"),
        (60, (8, 8, 3), None, r"expected images of 16 .* got 60 of 60 .* Enlarge them"),
        (60, (40, 40, 3), 64, r"expected images of 64 .* Ask for size=40 or less"),
    ],
    ids=["one image", "8x8", "larger than the images"],
)
def test_images_that_cannot_be_trained_on_are_refused(tmp_path, count, size, asked, expected):
    write(tmp_path, count, size)
    with pytest.raises(ValueError, match=expected):
        open_own_images(tmp_path, asked, 64)


def test_only_as_many_images_are_taken_as_memory_allows(tmp_path):
    write(tmp_path, 100, (16, 16, 3))
    found = open_own_images(tmp_path, None, 64, most_bytes=70 * 3 * 16 * 16)
    assert len(found.train_set) == 70
    assert found.notes[0].startswith("70 of ")


def test_a_set_of_images_is_divided_and_keeps_its_size():
    images = torch.arange(60 * 256).remainder(256).byte().view(60, 1, 16, 16)
    found = open_own_images(ImageTensorDataset(images), None, 64)
    assert len(found.held_out) > 0
    assert len(found.train_set) + len(found.held_out) == 60
    with pytest.raises(ValueError, match=r"got 16x16 and size=32"):
        open_own_images(images, 32, 64)


@pytest.mark.parametrize(("side", "fitted"), [(16, 16), (31, 28), (50, 48), (63, 56), (300, 256)])
def test_a_side_is_reduced_to_one_that_models_take(side, fitted):
    assert fitted_side(side) == fitted
