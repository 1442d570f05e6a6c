"""Writes Noto's emoji as a folder of PNGs: a second style beside the Fluent emoji, to train with.

    python tools/noto_emoji.py NotoColorEmoji.ttf OUT --size 64      # OUT/<class>/<key>.png

The font is in Debian's `fonts-noto-color-emoji` (SIL Open Font License 1.1) and must hold bitmaps
(a CBDT table). Only emoji of one code point are taken whose Fluent counterpart is in the training
split, so no emoji that is held out is seen in another style. Needs fonttools.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from build_emoji_sheet import PACKAGE_DATA, base_group
from fontTools.ttLib import TTFont
from PIL import Image

from vqvae2_fast.data.emoji import side_of_group


def on_white_square(png: bytes) -> Image.Image:
    """The glyph in the middle of a white square."""
    glyph = Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGBA")
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("font", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=64, help="side of the PNGs in pixels")
    options = parser.parse_args()
    font = TTFont(options.font)
    if "CBDT" not in font:
        raise ValueError(f"noto_emoji: {options.font} holds no bitmaps (no CBDT table).")
    glyphs, names = font["CBDT"].strikeData[0], font.getBestCmap()
    count = 0
    with (PACKAGE_DATA / "labels.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = row["key"]
            if "-" in key or side_of_group(base_group(key)) != "train":
                continue
            name = names.get(int(key, 16))
            if name not in glyphs:
                continue
            folder = options.out / row["category"]
            folder.mkdir(parents=True, exist_ok=True)
            image = on_white_square(glyphs[name].imageData)
            size = (options.size, options.size)
            image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{key}.png")
            count += 1
    print(f"{options.out}: {count} emoji of {options.size}x{options.size}")


if __name__ == "__main__":
    main()
