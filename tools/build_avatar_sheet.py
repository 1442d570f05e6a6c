"""Draws the avatars that come with the package: sheet.webp and counts.json of dicebear_avatars.

    python tools/build_avatar_sheet.py

Needs `pip install 'vqvae2_fast[avatars]'`. The images are the first of seed 0.
"""

from __future__ import annotations

import json

import torch
from build_emoji_sheet import encode_sheet

from vqvae2_fast.data import load_avatars
from vqvae2_fast.data.small_avatars import FOLDER

# Those that can be recognised at 32×32 after two minutes of training, by eye.
STYLES = ("clay", "critters", "cutouts", "gaze", "landscape", "moods", "planets", "sprouts")
COUNT = 600  # of each
# 2.7 MB at 41.7 dB. At 82, 1.5 MB and 36 dB, the bottom prior needs 434 bits for an image, where it
# needs 359 without any loss: the flat surfaces get a texture.
QUALITY = 95


def main() -> None:
    splits = {
        split: load_avatars(split, 32, styles=STYLES, count=COUNT, num_workers=0)
        for split in ("train", "held_out")
    }
    parts = {
        style: {split: own.images[own.labels == label] for split, own in splits.items()}
        for label, style in enumerate(STYLES)
    }
    tiles = torch.cat([images for own in parts.values() for images in own.values()])
    sheet = encode_sheet(tiles.permute(0, 2, 3, 1).numpy(), QUALITY)
    counts = {
        style: {split: len(images) for split, images in own.items()} for style, own in parts.items()
    }
    (FOLDER / "sheet.webp").write_bytes(sheet)
    (FOLDER / "counts.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    print(f"{FOLDER}: {len(tiles)} avatars, {len(sheet)} bytes")


if __name__ == "__main__":
    main()
