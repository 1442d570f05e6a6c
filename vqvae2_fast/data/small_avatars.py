"""The images of the demo: 4,800 avatars of 32×32 in eight styles, which come with the package.

tools/build_avatar_sheet.py draws them with `load_avatars` and packs them as emoji.py describes.
dicebear_avatars/LICENSE names the styles, which are in the public domain.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from vqvae2_fast.data.emoji import tiles_of_sheet
from vqvae2_fast.data.images import ImageTensorDataset, Split, check_split

__all__ = ["load_small_avatars"]

FOLDER = Path(__file__).parent / "dicebear_avatars"


def load_small_avatars(split: Split = "train") -> ImageTensorDataset:
    """The embedded avatars of a split, as uint8 `[N, 3, 32, 32]`, with their styles as classes.

    A tenth is held out: images with pairs of parts that training never sees, see `load_avatars`.

    Raises:
        ValueError: Unknown split.
    """
    check_split(split)
    counts = json.loads((FOLDER / "counts.json").read_text(encoding="utf-8"))
    sides = [(label, side) for label in range(len(counts)) for side in ("train", "held_out")]
    sizes = [counts[style][side] for style in counts for side in ("train", "held_out")]
    with Image.open(FOLDER / "sheet.webp", formats=("WEBP",)) as sheet:
        tiles = torch.from_numpy(tiles_of_sheet(sheet, sum(sizes)))  # [N, 32, 32, 3]
    chosen = [number for number, (_, side) in enumerate(sides) if split in ("all", side)]
    parts = tiles.permute(0, 3, 1, 2).split(sizes)  # one [n, 3, 32, 32] of each style and side
    labels = [sides[number][0] for number in chosen for _ in range(sizes[number])]
    return ImageTensorDataset(
        torch.cat([parts[number] for number in chosen]),
        torch.tensor(labels, dtype=torch.int64, device="cpu"),
        tuple(counts),
    )
