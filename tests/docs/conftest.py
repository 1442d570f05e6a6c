"""Images that look like photographs to a model, and a folder of them as people have one."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from pathlib import Path

_SIDES = (80, 401)


def photograph(seed: int, height: int = 0, width: int = 0) -> Image.Image:
    """A smooth gradient with a few shapes and the noise of a sensor, of any size by default."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(*_SIDES, 2)
    height, width = height or int(drawn[0]), width or int(drawn[1])
    y = np.arange(height)[:, None, None] / max(height, width)
    x = np.arange(width)[None, :, None] / max(height, width)
    slopes = generator.uniform(-150, 150, (2, 3))
    light = generator.uniform(60, 200, 3) + x * slopes[0] + y * slopes[1]
    image = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    for _ in range(generator.integers(2, 6)):
        left, top = generator.uniform(0, width), generator.uniform(0, height)
        box = (left, top, left + generator.uniform(5, width), top + generator.uniform(5, height))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if generator.random() < 0.5 else draw.rectangle)(
            box, fill=tuple(generator.integers(0, 256, 3).tolist())
        )
    noise = generator.integers(-9, 10, (height, width, 1), np.int16)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _cut(path: Path) -> None:
    """Leaves two thirds of a file, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with photos/: 300 JPEG and PNG files of mixed sizes, one cut."""
    (tmp_path / "photos").mkdir()
    for number in range(300):
        name = f"IMG_{number:04d}.{'png' if number % 5 == 0 else 'jpg'}"
        photograph(number).save(tmp_path / "photos" / name)
    _cut(tmp_path / "photos" / "IMG_0120.png")
    (tmp_path / "few").mkdir()  # for what takes a second an image
    for number in range(3):
        photograph(number, 64, 80 + 48 * number).save(tmp_path / "few" / f"{number}.png")
    _cut(tmp_path / "few" / "1.png")
    photograph(0).save(tmp_path / "photo.png")
    Image.new("L", (400, 300), 255).save(tmp_path / "hole.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def classes64(workspace: Path) -> Path:
    """A folder of two classes of 64x64 images."""
    for number in range(480):
        path = workspace / "emoji64" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number, 64, 64).save(path)
    return workspace / "emoji64"


@pytest.fixture
def fashion(workspace: Path) -> Path:
    """Fashion-MNIST's four files, with noise in the place of clothes."""
    folder = workspace / "fashion-mnist"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", 420), ("t10k", 210)):
        pixels = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, header, values in (
            ("images-idx3", (2051, count, 28, 28), pixels),
            ("labels-idx1", (2049, count), labels),
        ):
            with gzip.open(folder / f"{split}-{kind}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(np.array(header, ">i4").tobytes() + values.tobytes())
    return folder
