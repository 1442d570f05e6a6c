"""Fashion-MNIST: 70,000 pictures of clothes, 28×28 grey, from its four IDX files.

The files are those of https://github.com/zalandoresearch/fashion-mnist, compressed or not; Debian's
package dataset-fashion-mnist installs them. The files of MNIST have the same names and layout: pass
`class_names` for them.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.data.images import ImageTensorDataset, Split, check_split
from vqvae2_fast.files.json_file import damaged
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import decompressed, open_untrusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["FASHION_MNIST_CLASSES", "load_fashion_mnist", "read_idx"]

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Where Debian's package installs the files.
DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
_MAX_IDX_BYTES = 2**30  # the set's largest file has 47 MB
_UINT8 = 8  # the type code of IDX
_STEP = 2**20  # bytes read at a time, because a file may have fewer than its header says


def load_fashion_mnist(
    folder: str | os.PathLike[str],
    split: Split = "train",
    class_names: Sequence[str] = FASHION_MNIST_CLASSES,
) -> ImageTensorDataset:
    """The set as uint8 `[N, 1, 28, 28]`, white on black, with its ten classes.

    Args:
        folder: Holds {train,t10k}-{images-idx3,labels-idx1}-ubyte, each with .gz or without.
        split: "train" (60,000), "held_out" (the 10,000 of the test files) or "all".

    Raises:
        ValueError: Unknown split; a file that is missing, cut, damaged or of another kind.
    """
    check_split(split)
    parts = {"train": ("train",), "held_out": ("t10k",), "all": ("train", "t10k")}[split]
    images, labels = [], []
    for part in parts:
        images.append(read_idx(_find(Path(folder), f"{part}-images-idx3-ubyte"), 3))
        path = _find(Path(folder), f"{part}-labels-idx1-ubyte")
        labels.append(read_idx(path, 1))
        if len(images[-1]) != len(labels[-1]):
            raise ValueError(
                f"{printable(folder)} has {len(images[-1])} images and "
                f"{len(labels[-1])} labels of {part}; take all files from one set."
            )
        if len(labels[-1]) and int(labels[-1].max()) >= len(class_names):
            raise damaged(path, f"label {int(labels[-1].max())} of {len(class_names)} classes")
    return ImageTensorDataset(
        torch.cat(images).unsqueeze(1),  # [N, H, W] -> [N, 1, H, W]
        torch.cat(labels).long(),
        tuple(class_names),
    )


def read_idx(path: Path, dims: int) -> Tensor:
    """An IDX file of bytes, with .gz or without, as uint8 with `dims` dimensions.

    Raises:
        ValueError: Not an IDX file, another type or number of dimensions, another size than it
            says, or one that decompresses to more than 100 times its size.
    """
    with open_untrusted(path) as file, decompressed(file, path, 2 * _MAX_IDX_BYTES) as stream:
        sizes = _sizes(path, stream.read(4 + 4 * dims), dims)
        count = math.prod(sizes)
        if count > _MAX_IDX_BYTES:
            raise ValueError(
                f"{printable(path)} says it has {count} bytes; at most {_MAX_IDX_BYTES} are read."
            )
        content = bytearray()
        # One byte more than it says, to see whether the file ends.
        while part := stream.read(min(_STEP, count + 1 - len(content))):
            content += part
    if len(content) != count:
        found = "more" if len(content) > count else f"{len(content)}"
        raise ValueError(
            f"{printable(path)} has {found} bytes of data, its header says {count}; get it again."
        )
    if not count:
        return torch.zeros(sizes, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(content, dtype=torch.uint8).view(sizes)


def _sizes(path: Path, header: bytes, dims: int) -> list[int]:
    if header[:4] != bytes((0, 0, _UINT8, dims)) or len(header) != 4 + 4 * dims:
        raise ValueError(
            f"{printable(path)} is not an IDX file of bytes with {dims} dimension(s): it "
            f"begins with {header[:4].hex() or 'nothing'}, expected 000008{dims:02}."
        )
    return [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if os.path.lexists(path):
            return path
    raise ValueError(
        f"{printable(folder)} has neither {name} nor {name}.gz; get the four "
        "files from https://github.com/zalandoresearch/fashion-mnist (or `apt install "
        f"dataset-fashion-mnist`, which puts them in {DEBIAN_FOLDER})."
    )
