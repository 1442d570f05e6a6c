"""Images that were made (reconstructions, samples) in one file: sets larger than memory.

They are read, not mapped: a mapped file that another process cuts off ends this one by SIGBUS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.data.images import to_uint8
from vqvae2_fast.data.sample_folder import read_sample
from vqvae2_fast.data.sample_index import read_index
from vqvae2_fast.files.durable import explained, write_all
from vqvae2_fast.files.printable import printable, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["StoredImages", "labelled_samples", "samples_of_folder", "store_images"]

_NAMED = 6  # unknown classes that a message names


@dataclass(frozen=True, eq=False)
class StoredImages:
    """An `ImageSource` that reads one image at a time.

    Args:
        path: The bytes of all images, `[N, C, H, W]`.
        labels: int64 `[N]`, -1 where there is none.
    """

    path: Path
    image_shape: tuple[int, int, int]
    labels: Tensor
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        size = math.prod(self.image_shape)
        with self.path.open("rb") as file:
            file.seek(index * size)
            content = bytearray(file.read(size))
        if len(content) < size:
            raise ValueError(f"{printable(self.path)} was cut off: image {index} is not whole.")
        image = torch.frombuffer(content, dtype=torch.uint8).view(self.image_shape)
        return image, int(self.labels[index])


def store_images(
    path: Path,
    count: int,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_names: Sequence[str] = (),
) -> StoredImages:
    """Write images to `path` as bytes, and give them as a set that reads them from there.

    Args:
        count: How many images there are in all.
        batches: Images float `[B, C, H, W]` in [-1, 1] or uint8, and labels int64 `[B]`.

    Raises:
        ValueError: There are not `count` images, or not all of one shape.
        OSError: The disk is full or fails; the error names the path.
    """

    def writing() -> AbstractContextManager[None]:
        return explained(f"cannot write {path}", then="start again")

    with writing():
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb", buffering=0)
    shape: tuple[int, int, int] | None = None
    labels = torch.empty(count, dtype=torch.int64, device="cpu")
    done = 0
    with file:
        for images, own in batches:
            pixels = (images if images.dtype == torch.uint8 else to_uint8(images)).cpu()
            _, channels, height, width = pixels.shape
            if shape not in (None, (channels, height, width)):
                raise ValueError(
                    f"expected images {list(shape or ())}, got {[channels, height, width]}."
                )
            shape = (channels, height, width)
            with writing():
                write_all(file, pixels.contiguous().numpy().tobytes())
            if done + len(pixels) <= count:  # more are an error, which says how many there are
                labels[done : done + len(pixels)] = own
            done += len(pixels)
    if shape is None or done != count:
        raise ValueError(f"expected {count} images, got {done}.")
    return StoredImages(path, shape, labels, tuple(class_names))


def samples_of_folder(folder: Path, path: Path, class_names: Sequence[str]) -> StoredImages:
    """The images of a folder of samples, without the rejected ones, as a set stored at `path`.

    Raises:
        ValueError: There are no samples, or they are of other classes or unequal sizes.
    """
    samples, labels = labelled_samples(folder, class_names)
    if not samples:
        raise ValueError(f"samples: {folder} holds no samples; `vqvae2-fast sample` makes some.")

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for sample, label in zip(samples, labels, strict=True):
            yield (
                read_sample(folder, sample)[None],
                torch.tensor([label], dtype=torch.int64, device="cpu"),
            )

    return store_images(path, len(samples), batches(), class_names)


def labelled_samples(folder: Path, class_names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Numbers and labels of the samples in a folder that have an image; -1 for no class.

    Raises:
        ValueError: They are of other classes.
    """
    # A pipeline without names writes the numbers of its classes.
    numbers: dict[str | None, int] = {str(number): number for number in range(len(class_names))}
    numbers |= {name: number for number, name in enumerate(class_names)} | {None: -1}
    # Not the rows of the index, each of which takes a kilobyte as a dictionary.
    samples: list[int] = []
    labels: list[int] = []
    unknown: set[str] = set()
    for row in read_index(folder):
        if row["file"] is None:
            continue
        samples.append(row["sample"])
        labels.append(numbers.get(row.get("class"), -1))
        if row.get("class") not in numbers and len(unknown) < _NAMED:
            unknown.add(row["class"])
    if unknown:
        raise ValueError(
            f"samples: {folder} has classes that the training images do not have: "
            f"{', '.join(short(name) for name in sorted(unknown))}."
        )
    return samples, labels
