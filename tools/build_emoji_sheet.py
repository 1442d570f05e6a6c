"""Rebuilds the embedded emoji from their npm package, or writes them as a folder of PNGs.

Get the package with `npm pack @lobehub/fluent-emoji-3d@1.1.0`, which leaves
lobehub-fluent-emoji-3d-1.1.0.tgz (15.8 MB); SOURCE is that file, or the folder package/assets
from it.

    python tools/build_emoji_sheet.py SOURCE                         # sheet.webp, labels.csv
    python tools/build_emoji_sheet.py SOURCE --folder OUT --size 64  # OUT/train, OUT/held_out
    python tools/build_emoji_sheet.py SOURCE --folder OUT --subcategories  # 96 classes, not 9

The label table decides which emoji are taken and in what order; its first five columns are
emoji-data's, the sixth, `group`, is written here. Needs vqvae2_fast installed.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae2_fast.data.emoji import SHEET_COLUMNS, TILE, side_of_group, tiles_of_sheet
from vqvae2_fast.data.groups import SEPARATOR

PACKAGE_DATA = Path(__file__).parents[1] / "vqvae2_fast" / "data" / "fluent_emoji"
QUALITY = 82  # the highest that keeps the sheet under 1.3 MB: 1.286 MB; 84 makes 1.366 MB
COLUMNS = ("key", "category", "subcategory", "short_name", "skin_variant", "group")
_ART = 256  # pixels; four files of the package are 264 high and are cropped to the middle

_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_MAN_WOMAN_PERSON = {"1f468", "1f469", "1f9d1"}
_JOINER_AND_GENDER_SIGNS = {"200d", "2640", "2642"}


def base_group(key: str) -> str:
    """The code points of an emoji without skin tone, gender, person and joiners.

    So one group holds all variants of an emoji, and sometimes also an object together with a person
    who has it (sheaf of rice, farmer). Groups may be coarser than needed, but never finer.
    """
    variant = _SKIN_TONES | _MAN_WOMAN_PERSON | _JOINER_AND_GENDER_SIGNS
    return "-".join(point for point in key.split("-") if point not in variant) or "person"


def key_of_file(name: str) -> str:
    """The table's key for a file: code points without leading zeros and variation selectors."""
    points = Path(name).stem.lower().replace("_", "-").split("-")
    return "-".join(point.lstrip("0") for point in points if point != "fe0f")


def read_art(source: Path, keys: list[str]) -> list[Image.Image]:
    """One RGB image of 256×256 on white per key, from the .tgz or the assets folder.

    Raises:
        ValueError: The source lacks a key or is neither.
    """
    files: dict[str, bytes] = {}
    if source.is_dir():
        files = {path.name: path.read_bytes() for path in source.glob("*.webp")}
    elif tarfile.is_tarfile(source):
        with tarfile.open(source) as tar:
            for member in tar:
                match = re.fullmatch(r"package/assets/([0-9a-f_-]+\.webp)", member.name)
                content = tar.extractfile(member) if match else None
                if match and content:
                    files[match[1]] = content.read()
    else:
        raise ValueError(f"build_emoji_sheet: {source} is neither a .tgz nor an assets folder.")
    # Some emoji occur in several spellings that differ only in compression: the shortest is taken.
    by_key: dict[str, str] = {}
    for name in sorted(files, key=lambda name: (-len(name), name)):
        by_key[key_of_file(name)] = name
    missing = [key for key in keys if key not in by_key]
    if missing:
        raise ValueError(
            f"build_emoji_sheet: {source} lacks {len(missing)} of {len(keys)} emoji, the first is "
            f"{missing[0]}; expected @lobehub/fluent-emoji-3d@1.1.0."
        )
    return [on_white(files[by_key[key]]) for key in keys]


def on_white(webp: bytes) -> Image.Image:
    """The picture over white, its middle 256 rows."""
    art = Image.open(io.BytesIO(webp), formats=("WEBP",)).convert("RGBA")
    white = Image.new("RGBA", art.size, (255, 255, 255, 255))
    white.alpha_composite(art)
    top = (art.height - _ART) // 2
    return white.crop((0, top, _ART, top + _ART)).convert("RGB")


def scaled(art: list[Image.Image], size: int) -> np.ndarray:
    """The pictures at size×size (bicubic, antialiased), uint8 `[N, size, size, 3]`."""
    return np.stack([np.asarray(a.resize((size, size), Image.Resampling.BICUBIC)) for a in art])


def encode_sheet(tiles: np.ndarray, quality: int = QUALITY) -> bytes:
    """The WebP file of tiles `[N, 32, 32, 3]`: see vqvae2_fast/data/emoji.py for its layout."""
    rows = -(-len(tiles) // SHEET_COLUMNS)
    grid = np.full((rows * SHEET_COLUMNS, TILE, TILE, 3), 255, np.uint8)
    grid[: len(tiles)] = tiles
    pixels = grid.reshape(rows, SHEET_COLUMNS, TILE, TILE, 3).swapaxes(1, 2)
    pixels = pixels.reshape(rows * TILE, SHEET_COLUMNS * TILE, 3)
    planes = Image.fromarray(pixels).convert("YCbCr").split()
    stacked = np.concatenate([np.asarray(plane) for plane in planes])  # [3 * rows * 32, ...]
    file = io.BytesIO()
    Image.fromarray(stacked).convert("RGB").save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def psnr(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """PSNR in dB of the mean squared error of all tiles, and of the worst tile."""
    error = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    mean, worst = 10 * np.log10(255.0**2 / np.array([error.mean(), error.max()]))
    return float(mean), float(worst)


def write_sheet(art: list[Image.Image], rows: list[dict[str, str]], out: Path) -> None:
    """Writes sheet.webp and labels.csv, and prints size and fidelity."""
    tiles = scaled(art, TILE)
    sheet = encode_sheet(tiles)
    out.mkdir(parents=True, exist_ok=True)
    (out / "sheet.webp").write_bytes(sheet)
    with (out / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "group": base_group(row["key"])} for row in rows)
    mean, worst = psnr(tiles_of_sheet(Image.open(io.BytesIO(sheet)), len(tiles)), tiles)
    print(f"{out}: {len(tiles)} emoji, {len(sheet)} bytes, {mean:.1f} dB (worst {worst:.1f} dB)")


def write_folder(
    art: list[Image.Image],
    rows: list[dict[str, str]],
    out: Path,
    size: int,
    *,
    subcategories: bool = False,
) -> None:
    """Writes OUT/{train,held_out}/<class>/<key>.png, split as the embedded set is.

    A class is a category, or "<category> - <subcategory>".

    Raises:
        ValueError: The folder has images already, which may be of other classes.
    """
    if any(out.glob("*/*/*.png")):
        raise ValueError(f"build_emoji_sheet: {out} has images already; name another folder.")
    for tile, row in zip(scaled(art, size), rows, strict=True):
        name = row["category"]
        if subcategories:
            name += SEPARATOR + row["subcategory"]
        folder = out / side_of_group(base_group(row["key"])) / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(folder / f"{row['key']}.png")
    print(f"{out}: {len(art)} emoji of {size}x{size}; use ImageFolder({str(out)!r}, {size})")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Rebuild the embedded emoji, or write a folder.")
    parser.add_argument("source", type=Path, help="the package's .tgz or its assets folder")
    parser.add_argument("--labels", type=Path, default=PACKAGE_DATA / "labels.csv")
    parser.add_argument("--out", type=Path, default=PACKAGE_DATA, help="where the sheet goes")
    parser.add_argument("--folder", type=Path, help="write a folder of PNGs here instead")
    parser.add_argument("--size", type=int, default=64, help="side of the PNGs in pixels")
    parser.add_argument(
        "--subcategories", action="store_true", help="one folder for each subcategory"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.size <= _ART:
        parser.error(f"--size must be between 1 and {_ART}, got {options.size}")
    with options.labels.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    art = read_art(options.source, [row["key"] for row in rows])
    if options.folder:
        write_folder(art, rows, options.folder, options.size, subcategories=options.subcategories)
    else:
        write_sheet(art, rows, options.out)


if __name__ == "__main__":
    main()
