"""Grids of images: what they read of a set."""

from __future__ import annotations

import torch
from PIL import Image

from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.report import picture_of_reconstructions
from vqvae2_fast.testing.pipelines import tiny_pipeline


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
