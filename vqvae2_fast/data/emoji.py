"""The embedded image set: 3,127 emoji of Microsoft's Fluent 3D set, 32×32 RGB on white.

The art is MIT-licensed (fluent_emoji/LICENSE). Country flags are left out: they are by another
artist.
tools/build_emoji_sheet.py builds fluent_emoji/sheet.webp and the groups of fluent_emoji/labels.csv.

WebP stores colour at half resolution, which at 32×32 costs more than anything else: a colour sheet
of 1.2 MB (quality 90) has a PSNR of 29.7 dB against the tiles, and codecs that are compared on such
tiles would look better than they are. So the sheet is a grey image of three panels, one above the
other: the Y, Cb and Cr planes of all tiles. With the same number of bytes it reaches 35 dB, and
with 1.29 MB (quality 82) 35.9 dB.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqvae2_fast.data.groups import SEPARATOR
from vqvae2_fast.data.images import ImageTensorDataset, Split, check_split, is_held_out

__all__ = ["EMOJI_CLASSES", "load_emoji"]

EMOJI_CLASSES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
TILE = 32  # pixels
SHEET_COLUMNS = 56  # 56² is the least square of tiles that holds 3,127
_FOLDER = Path(__file__).parent / "fluent_emoji"


def load_emoji(
    split: Split = "train", size: int = TILE, *, subcategories: bool = False
) -> ImageTensorDataset:
    """The embedded emoji of a split, as uint8 `[N, 3, size, size]`, with their nine classes.

    A tenth of the base emoji is held out, with all skin-tone and gender variants of each: 2,819
    images of 1,268 groups to train on, 308 of 138 held out.

    Args:
        split: "train", "held_out" or "all".
        size: 32, or a divisor of it, to which the tiles are averaged down.
        subcategories: Unicode's 96 subcategories as classes, such as "Food & Drink - food-fruit",
            whose groups are the nine.

    Returns:
        The set; `names` are code points in hexadecimal, joined by "-", as in labels.csv.

    Raises:
        ValueError: Unknown split, or a size that does not divide 32.
    """
    check_split(split)
    if size < 1 or TILE % size:
        raise ValueError(
            f"the embedded emoji are {TILE}x{TILE}; size must divide {TILE}, got "
            f"{size}. For larger ones build a folder with `python tools/build_emoji_sheet.py "
            f"ASSETS --folder OUT --size {size}` and use ImageFolder(OUT, {size})."
        )
    with (_FOLDER / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with Image.open(_FOLDER / "sheet.webp", formats=("WEBP",)) as sheet:
        tiles = tiles_of_sheet(sheet, len(rows))  # [N, 32, 32, 3]
    chosen = [i for i, row in enumerate(rows) if split in ("all", side_of_group(row["group"]))]
    images = torch.from_numpy(tiles[chosen]).permute(0, 3, 1, 2).contiguous()  # [N, 3, 32, 32]
    if size != TILE:
        blocks = images.view(len(chosen), 3, size, TILE // size, size, TILE // size).float()
        images = blocks.mean((3, 5)).round().to(torch.uint8)  # [N, 3, size, size]
    names: tuple[str, ...] = EMOJI_CLASSES
    classes = [row["category"] for row in rows]
    if subcategories:
        classes = [SEPARATOR.join((row["category"], row["subcategory"])) for row in rows]
        names = tuple(sorted(set(classes)))
    return ImageTensorDataset(
        images,
        torch.tensor([names.index(classes[i]) for i in chosen], dtype=torch.int64, device="cpu"),
        names,
        tuple(rows[i]["key"] for i in chosen),
    )


def side_of_group(group: str) -> Split:
    """ "train" or "held_out", by the hash of a base emoji's group."""
    # A few hundred prefixes (0, 1, 2, ...) were tried for a balanced tenth. This one holds out
    # 9.8 % of the groups and of the images, 8 to 25 % of every class, and no image that is within
    # an RMS difference of 5 of 255 (at 16×16) of one to train on.
    return "held_out" if is_held_out(f"352/{group}", 0.1) else "train"


def tiles_of_sheet(sheet: Image.Image, count: int) -> np.ndarray:
    """The first `count` tiles of a sheet, uint8 `[count, 32, 32, 3]`, RGB."""
    grey = np.asarray(sheet.convert("RGB"))[..., 1]  # a grey image: all three are equal
    planes = np.split(grey, 3)  # Y, Cb, Cr, each [rows * 32, columns * 32]
    colour = Image.merge("YCbCr", [Image.fromarray(plane) for plane in planes]).convert("RGB")
    pixels = np.asarray(colour)
    rows = pixels.shape[0] // TILE
    grid = pixels.reshape(rows, TILE, SHEET_COLUMNS, TILE, 3).swapaxes(1, 2)
    return grid.reshape(-1, TILE, TILE, 3)[:count]  # [rows, columns, 32, 32, 3] -> [N, 32, 32, 3]
