"""Cuts photographs into square patches, one folder per photograph, as a set of natural images.

    python tools/cut_photo_patches.py PHOTOS OUT [--size 256] [--scale 1.0] [--format jpg]

PHOTOS holds .jpg or .png files, such as the 18 of Debian's package budgie-backgrounds (CC0, in
/usr/share/backgrounds/budgie). Patches lie edge to edge from the upper left corner; what is left at
the right and below is dropped. The folders are the classes of an `ImageFolder` of OUT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image


def cut(photo: Path, out: Path, size: int, scale: float, suffix: str) -> int:
    """Writes the patches of a photograph into the folder `out` and returns their number."""
    with Image.open(photo) as image:
        pixels = image.convert("RGB")
    if scale != 1.0:
        wanted = (round(pixels.width * scale), round(pixels.height * scale))
        pixels = pixels.resize(wanted, Image.Resampling.BICUBIC)
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for top in range(0, pixels.height - size + 1, size):
        for left in range(0, pixels.width - size + 1, size):
            patch = pixels.crop((left, top, left + size, top + size))
            patch.save(out / f"{top:05}-{left:05}.{suffix}", quality=92)
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--scale", type=float, default=1.0, help="of the photographs, before")
    parser.add_argument("--format", choices=("jpg", "png", "webp"), default="jpg")
    options = parser.parse_args()
    photos = sorted(p for p in options.photos.iterdir() if p.suffix in (".jpg", ".jpeg", ".png"))
    if not photos:
        parser.error(f"no .jpg or .png files in {options.photos}")
    total = sum(
        cut(photo, options.out / photo.stem, options.size, options.scale, options.format)
        for photo in photos
    )
    print(f"{total} patches of {len(photos)} photographs in {options.out}")


if __name__ == "__main__":
    main()
