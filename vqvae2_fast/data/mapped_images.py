"""Images that were made (reconstructions, samples) as one mapped file: sets larger than memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqvae2_fast.data.images import ImageTensorDataset, to_uint8
from vqvae2_fast.data.sample_folder import read_index

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = ["map_images", "samples_of_folder"]


def map_images(
    path: Path,
    count: int,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_names: Sequence[str] = (),
) -> ImageTensorDataset:
    """Write images to `path` (.npy) as bytes, and give them as a set on the mapped file.

    Args:
        count: Images in all.
        batches: Images float `[B, C, H, W]` in [-1, 1] or uint8, and labels int64 `[B]`.

    Raises:
        ValueError: If there are not `count` images.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file: np.memmap | None = None
    labels: list[Tensor] = []
    done = 0
    for images, own in batches:
        pixels = (images if images.dtype == torch.uint8 else to_uint8(images)).cpu().numpy()
        if file is None:
            file = np.lib.format.open_memmap(
                path, mode="w+", dtype=np.uint8, shape=(count, *pixels.shape[1:])
            )
        if done + len(pixels) > count:
            raise ValueError(f"map_images: expected {count} images, got more.")
        file[done : done + len(pixels)] = pixels
        labels.append(own.cpu())
        done += len(pixels)
    if file is None or done != count:
        raise ValueError(f"map_images: expected {count} images, got {done}.")
    return ImageTensorDataset(torch.from_numpy(file), torch.cat(labels), tuple(class_names))


def samples_of_folder(folder: Path, path: Path, class_names: Sequence[str]) -> ImageTensorDataset:
    """The images of a folder of samples, rejected ones left out, as a set mapped from `path`.

    Raises:
        ValueError: No samples there, or of other classes.
    """
    rows = [row for row in read_index(folder) if row["file"] is not None]
    if not rows:
        raise ValueError(f"--samples: {folder} holds no samples; `vqvae2-fast sample` makes some.")
    unknown = {row["class"] for row in rows} - {None, *class_names}
    if unknown:
        raise ValueError(
            f"--samples: {folder} has classes that the images have not: "
            f"{', '.join(sorted(unknown)[:6])}."
        )
    numbers = {name: number for number, name in enumerate(class_names)}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for row in rows:
            with Image.open(folder / row["file"], formats=("PNG",)) as image:
                pixels = np.array(image)
            pixels = pixels.reshape(1, *pixels.shape[:2], -1).transpose(0, 3, 1, 2)
            yield torch.from_numpy(pixels), torch.tensor([numbers.get(row["class"], -1)])

    return map_images(path, len(rows), batches(), class_names)
