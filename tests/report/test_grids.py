"""Grids: what they read of a set, and what they show of codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import tiny_pipeline
from PIL import Image

import vqvae2_fast as vq2
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.models.code_colours import level_colours
from vqvae2_fast.report import (
    code_grid,
    image_grid,
    picture_of_reconstructions,
    reconstruction_grid,
    sample_grid,
)


class Counted:
    """A set of images that notes which of them are read."""

    def __init__(self, count: int) -> None:
        pixels = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8)
        self.images, self.read = ImageTensorDataset(pixels), list[int]()
        self.labels, self.class_names = self.images.labels, self.images.class_names
        self.image_shape = self.images.image_shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return self.images[index]


def test_a_picture_reads_the_images_that_it_shows_alone(tmp_path):
    images = Counted(101)
    path = picture_of_reconstructions(tiny_pipeline().vqvae, images, tmp_path / "p.png", 5)
    assert images.read == [0, 25, 50, 75, 100]
    with Image.open(path) as picture:
        assert picture.width > 5 * 96


def test_a_small_set_is_shown_whole(tmp_path):
    images = Counted(3)
    picture_of_reconstructions(tiny_pipeline().vqvae, images, tmp_path / "p.png", 5)
    assert images.read == [0, 1, 2]


def test_tiles_are_as_small_as_they_are_asked_to_be():
    images = torch.zeros(4, 3, 16, 16)
    for tile in (16, 48):
        assert (
            reconstruction_grid(images, images, tile=tile).height == 2 * (tile + GAP) + 2 * MARGIN
        )
        assert sample_grid(images, tile=tile).size == (
            4 * (tile + GAP) - GAP + 2 * MARGIN,
            tile + GAP + 2 * MARGIN,
        )
        by_class = sample_grid(images, [0, 0, 1, 0], ["a", "b"], tile=tile)
        assert by_class.height == 2 * (tile + GAP) + 2 * MARGIN


@pytest.mark.parametrize("name", ["é", "Ж", "ß", "λ"])
def test_letters_beyond_ascii_are_drawn(name):
    box = "\uffff"  # is no letter, so a font draws the sign of a missing one
    images = torch.zeros(1, 3, 16, 16)
    assert image_grid([images], [name]).tobytes() != image_grid([images], [box]).tobytes()


@pytest.mark.parametrize("name", ["é\nü", "é\u2028ü", "\té ü\n"])
def test_a_name_of_several_lines_is_drawn_on_one(name):
    images = torch.zeros(1, 3, 16, 16)
    on_one = image_grid([images], ["é ü"], title="é ü")
    assert image_grid([images], [name], title=name).tobytes() == on_one.tobytes()


CELL, GAP, MARGIN = 8, 4, 12  # pixels: a code of the finer map below, and as in grids.py


def test_every_code_has_its_colour_and_unknown_ones_are_white():
    vqvae = tiny_pipeline().vqvae  # maps of 4x4 and 8x8
    codes = [torch.randint(13, (3, 4, 4)), torch.randint(13, (3, 8, 8))]
    codes[1][2, 7, 5] = -1
    seen = np.asarray(code_grid(vqvae, codes, tile=8 * CELL))
    left = seen.shape[1] - MARGIN - 3 * 8 * CELL - 2 * GAP
    for level, colours in enumerate(level_colours(vqvae)):
        palette = np.concatenate([colours.numpy(), [[255] * 3]])
        side = 8 * CELL // codes[level].shape[-1]
        for image, y, x in np.ndindex(*codes[level].shape):
            top = MARGIN + level * (8 * CELL + GAP) + y * side
            cell = seen[top:, left + image * (8 * CELL + GAP) + x * side :][:side, :side]
            assert (cell == palette[codes[level][image, y, x]]).all(), (level, image, y, x)


def test_images_stand_above_their_codes():
    vqvae = tiny_pipeline().vqvae
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = vqvae.encode(images)
    alone, below = code_grid(vqvae, codes), code_grid(vqvae, codes, images, title="codes")
    assert below.height > alone.height + 96
    assert below.width == alone.width


def test_a_quantiser_of_any_kind_paints_its_map():
    for quantizer in (vq2.FSQ([8, 5, 5]), vq2.VectorQuantizerEMA(32, 3).eval()):
        picture = code_grid(quantizer, quantizer.encode(torch.randn(2, 6, 5, 3)))
        assert len(picture.getcolors(1 << 16)) > 10
        assert picture._repr_png_().startswith(b"\x89PNG")  # which a notebook shows


@pytest.mark.parametrize(
    ("codes", "error", "text"),
    [
        (
            [torch.zeros(1, 4, 4, dtype=torch.int64)],
            ValueError,
            r"to be 2 maps \(top, bottom",
        ),
        ([torch.zeros(1, 4, 4)] * 2, TypeError, r"codes\[0\] int64"),
        ([torch.zeros(4, 4, dtype=torch.int64)] * 2, ValueError, r"codes\[0\] \[B, h, w\], got"),
        ([torch.full((1, 4, 4), 13)] * 2, ValueError, r"codes\[0\] in -1..12, got"),
    ],
    ids=["one map", "floats", "no batch", "beyond"],
)
def test_codes_that_are_none_are_refused(codes, error, text):
    with pytest.raises(error, match=text):
        code_grid(tiny_pipeline().vqvae, codes)


def test_several_indices_for_a_vector_are_refused():
    quantizer = vq2.ResidualVQ(8, 4, 2)
    with pytest.raises(ValueError, match="one index for a vector, got ResidualVQ"):
        code_grid(quantizer, quantizer.encode(torch.randn(1, 3, 3, 4)))
