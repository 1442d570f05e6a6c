"""Draws the picture of docs/avatars.md: the sixteen styles in eight rows, two styles in each.

python tools/avatar_sheet.py docs/images/avatars.png

Needs `pip install 'vqvae2_fast[avatars]'`. The images are the first of seed 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from vqvae2_fast.data import AVATAR_STYLES, load_avatars

ROWS, EACH, SIZE, GAP, NAME = 8, 6, 48, 3, 76  # pixels, but for the first two


def sheet() -> Image.Image:
    images = load_avatars("all", SIZE, count=EACH, num_workers=0)
    side = SIZE + GAP
    width = NAME + EACH * side
    picture = Image.new("RGB", (2 * width, ROWS * side - GAP), "#f6f8fa")
    draw = ImageDraw.Draw(picture)
    for label, style in enumerate(AVATAR_STYLES):
        column, row = divmod(label, ROWS)
        left, top = column * width + NAME, row * side
        draw.text((left - 8, top + SIZE // 2), style, "#24292f", anchor="rm", font_size=12)
        for number, image in enumerate(images.images[images.labels == label]):
            tile = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.paste(tile, (left + number * side, top))
    return picture.quantize(256, dither=Image.Dither.NONE)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sheet().save(Path(sys.argv[1]), optimize=True)
