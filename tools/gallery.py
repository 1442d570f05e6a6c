"""Draws the pictures of a pipeline's gallery page.

    python tools/gallery.py emoji32 --data emoji --out docs/gallery/emoji32
    python tools/gallery.py FOLDER_OF_A_PIPELINE --data DATA --out FOLDER

Leaves plain.png (temperature 1, nothing chosen), chosen.png (the recommended settings), nearest.png
(each sample above the training image that is nearest to it, or its mirror image, in pixels of a
quarter of the size), completions.png (lower halves of held-out images drawn anew) and
variations.png (held-out images whose top codes are kept and whose other codes are drawn). All
pictures are of the first samples of seed 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast import Pipeline, from_preset, load, sample_images
from vqvae2_fast.checkpoints import pretrained_names
from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageSource, in_order
from vqvae2_fast.data.groups import group_names, spread_over_groups
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.report.grids import image_grid, sample_grid

if TYPE_CHECKING:
    from PIL import Image

SHOWN, REAL, DRAWN = 10, 12, 4  # samples of a class; held-out images; drawings of each


def coarse(images: Tensor) -> Tensor:
    """Pixels of a quarter of the size, `[B, D]`."""
    return F.avg_pool2d(images, 4).flatten(1)


def nearest(samples: Tensor, train_set: ImageSource) -> Tensor:
    """The nearest training image of each sample, mirrored if that is nearer: `[B, C, H, W]`."""
    found, least = torch.zeros_like(samples), torch.full((len(samples),), torch.inf)
    for batch, _ in in_order(train_set, 256):
        for images in (batch, batch.flip(-1)):
            distance, index = torch.cdist(coarse(samples), coarse(images)).min(1)
            nearer = distance < least
            found[nearer], least[nearer] = images[index[nearer]], distance[nearer]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", help="a pretrained preset, or the folder of a pipeline")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def keep(picture: Image.Image, name: str) -> None:
        picture.quantize(256).save(options.out / f"{name}.png", optimize=True)

    pretrained = options.pipeline in pretrained_names()
    pipeline = (
        from_preset(options.pipeline) if pretrained else load(options.pipeline, expect=Pipeline)
    )
    vqvae, _ = pipeline.networks()
    config, source = vqvae.config, DataOptions(options.data)
    train_set, held_out = (
        open_images(source, split, config.image_channels, config.image_size, Progress(quiet=True))
        for split in ("train", "held_out")
    )
    # A row for each group of classes.
    names, settings = group_names(pipeline.class_names), dict(pipeline.recommended)
    labels = torch.tensor(spread_over_groups(pipeline.class_names, SHOWN)).flatten()
    rows_of = torch.arange(len(names)).repeat_interleave(SHOWN)
    chosen = sample_images(pipeline, len(labels), labels=labels, **settings)
    plain = sample_images(pipeline, len(labels), labels=labels)
    for name, images in (("plain", plain), ("chosen", chosen)):
        keep(sample_grid(images, rows_of.tolist(), names, title=name), name)

    rows, titles = [], []
    for number, name in enumerate(names):
        own = chosen[rows_of == number]
        rows += [own, nearest(own, train_set)]
        titles += [name, "nearest"]
    keep(image_grid(rows, titles, gaps=range(2, len(rows), 2), tile=64), "nearest")

    at = torch.linspace(0, len(held_out) - 1, REAL).long()
    real = torch.stack([held_out[int(i)][0] for i in at]).float() / 127.5 - 1
    own_labels = held_out.labels[at]
    maps = vqvae.encode(real)
    upper = [codes.clone() for codes in maps]
    for codes in upper:
        codes[:, codes.shape[1] // 2 :] = -1
    top_only = [maps[0], *[None] * (len(maps) - 1)]
    for name, known in (("completions", upper), ("variations", top_only)):
        drawn = [
            sample_images(
                pipeline, REAL, labels=own_labels, first_sample=n * REAL, known=known, **settings
            )
            for n in range(DRAWN)
        ]
        titles = ["real", *["drawn"] * DRAWN]
        keep(image_grid([real, *drawn], titles, gaps=[1], tile=64, title=name), name)


if __name__ == "__main__":
    main()
