"""Hugging Face data sets as image sources: `pip install 'vqvae2_fast[hf]'`.

The package `datasets` finds, downloads and keeps the data; here an item is made into pixels.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2_fast.data.pixels import DECODE_ERRORS, CorruptImageError, check_mode, pixels_of

if TYPE_CHECKING:
    import os

    import datasets

__all__ = ["HuggingFaceImages", "hugging_face_splits", "open_hugging_face"]


class HuggingFaceImages(Dataset[tuple[Tensor, int]]):
    """A data set with a column of images, resized to cover `image_size` and cropped to it.

    Args:
        source: A `datasets.Dataset` (one split, not a stream).
        image_size: (height, width), or one number for both, in pixels.
        image_channels: 3 for RGB, 1 for grey.
        image_column: Without it the only column of images.
        label_column: Without it the only column of class labels, if there is just one; "" for no
            labels.
        convert_channels: Turn grey to RGB or RGB to grey where needed.

    Item: uint8 `[C, H, W]` and the label.

    Raises:
        TypeError: source is a stream, or several splits.
        ValueError: No such column, or no single one to choose; on access, an image that cannot be
            decoded, is too small or of the other kind.
    """

    def __init__(
        self,
        source: datasets.Dataset,
        image_size: int | tuple[int, int],
        *,
        image_channels: int = 3,
        image_column: str | None = None,
        label_column: str | None = None,
        convert_channels: bool = False,
    ) -> None:
        if isinstance(getattr(source, "num_rows", None), dict):
            raise TypeError(
                "HuggingFaceImages: expected one split, got several; choose one of "
                f"{', '.join(source.num_rows)}."
            )
        if not hasattr(source, "features") or not hasattr(source, "num_rows"):
            raise TypeError(
                "HuggingFaceImages: expected a datasets.Dataset, got "
                f"{type(source).__name__}; choose a split, and do not stream."
            )
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 1 or image_channels not in (1, 3):
            raise ValueError(
                "HuggingFaceImages: image_size must be >= 1 and image_channels 1 or 3, got "
                f"{(height, width)} and {image_channels}."
            )
        self.source = source
        self.image_shape = (image_channels, height, width)
        self.convert_channels = convert_channels
        self._image = _column(source, image_column, "Image", "image_column")
        label = label_column
        if label is None:
            found = _columns(source, "ClassLabel")
            label = found[0] if len(found) == 1 else ""
        self._label = label
        self.class_names: tuple[str, ...] = ()
        if label:
            label = _column(source, label, "ClassLabel", "label_column")
            self.class_names = tuple(source.features[label].names)
            values = [-1 if value is None else int(value) for value in source[label]]
            self.labels = torch.tensor(values, dtype=torch.int64)
        else:
            self.labels = torch.full((source.num_rows,), -1, dtype=torch.int64)

    def __len__(self) -> int:
        return int(self.source.num_rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        where = f"HuggingFaceImages: item {index} of {self._image}"
        channels, height, width = self.image_shape
        try:
            image = self.source[index][self._image]
            if image is None:
                raise ValueError("there is none")
            pixels = pixels_of(image, self.image_shape) if image.mode not in ("I", "F") else None
        except DECODE_ERRORS as error:
            raise CorruptImageError(f"{where} cannot be decoded ({error}).") from error
        check_mode(where, image, channels, self.convert_channels)
        if pixels is None:
            raise ValueError(
                f"{where} is {image.height}x{image.width} (height x width), smaller than "
                f"image_size {height}x{width}; filter such items out."
            )
        return pixels, int(self.labels[index])

    def fingerprint(self) -> str:
        """Changes with the data set and with what is made of it."""
        # The package's own key for all that led to the data set; its cache rests on it.
        key = self.source._fingerprint
        made = (self._image, self._label, self.image_shape, self.convert_channels)
        return f"hf/{key}/{made}"


def open_hugging_face(
    name: str | os.PathLike[str], split: str = "train", **options: Any
) -> datasets.Dataset:
    """A split of a data set: from a folder that `save_to_disk` left, else by `load_dataset`.

    Args:
        options: For `datasets.load_dataset`.

    Raises:
        RuntimeError: The package `datasets` is not installed.
        ValueError: The folder has no such split.
    """
    _need_package("open_hugging_face")
    import datasets

    saved = Path(name)
    if not (saved / "dataset_info.json").exists() and not (saved / "dataset_dict.json").exists():
        return datasets.load_dataset(str(name), split=split, **options)
    found = datasets.load_from_disk(str(saved))
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(
                f"open_hugging_face: {saved} has no split {split!r}; it has {', '.join(found)}."
            )
        return found[split]
    return found


def hugging_face_splits(name: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the splits that `open_hugging_face` gives of a data set.

    Raises:
        RuntimeError: The package `datasets` is not installed.
    """
    _need_package("hugging_face_splits")
    import datasets

    saved = Path(name)
    if (saved / "dataset_dict.json").exists():
        return tuple(json.loads((saved / "dataset_dict.json").read_bytes())["splits"])
    if (saved / "dataset_info.json").exists():
        return ("train",)  # which is the default of open_hugging_face
    return tuple(datasets.get_dataset_split_names(str(name)))


def _need_package(op: str) -> None:
    if find_spec("datasets") is None:
        raise RuntimeError(f"{op}: needs the package datasets: pip install 'vqvae2_fast[hf]'")


def _columns(source: datasets.Dataset, kind: str) -> list[str]:
    """Columns of a feature type of the package, by the type's name."""
    return [name for name, feature in source.features.items() if type(feature).__name__ == kind]


def _column(source: datasets.Dataset, wanted: str | None, kind: str, argument: str) -> str:
    found = _columns(source, kind)
    if wanted is None and len(found) == 1:
        return found[0]
    if wanted not in found:
        raise ValueError(
            f"HuggingFaceImages: {argument} must be one of the columns of type {kind} "
            f"({', '.join(found) or 'there are none'}), got {wanted!r}."
        )
    return wanted
