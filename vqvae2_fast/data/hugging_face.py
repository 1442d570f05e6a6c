"""Hugging Face data sets as image sources: `pip install 'vqvae2_fast[hf]'`.

The package `datasets` finds, downloads and keeps the data. Images are decoded here, not by the
package: it would try every format that Pillow knows, and open any file that a row names.
"""

from __future__ import annotations

import io
import os
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2_fast.data.images import (
    check_class_names,
    check_labels,
    checked_shape,
    fingerprint,
)
from vqvae2_fast.data.pixels import CorruptImageError, decode_image
from vqvae2_fast.files.json_file import damaged, read_object
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import datasets

__all__ = [
    "HuggingFaceImages",
    "hugging_face_folder",
    "hugging_face_splits",
    "open_hugging_face",
]

_T = TypeVar("_T")
_DICT, _INFO, _STATE = "dataset_dict.json", "dataset_info.json", "state.json"
# What `datasets` and Arrow raise for damaged files, as found by damaging them (tools/fuzz.py).
_LOAD_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
)


class HuggingFaceImages(Dataset[tuple[Tensor, int]]):
    """A data set with a column of images, resized to cover `image_size` and cropped to it.

    Args:
        source: A `datasets.Dataset` (one split, not a stream).
        image_size: (height, width), or one number for both, in pixels.
        image_channels: 3 for RGB, 1 for grey.
        image_column: By default the only column of images.
        label_column: By default the only column of class labels, if there is just one; "" for no
            labels.
        convert_channels: Turn grey to RGB or RGB to grey where needed.
        folder: The folder in which rows may name image files. Without it the images have to be in
            the data set itself, as bytes.

    Item: uint8 `[C, H, W]` and the label.

    Raises:
        TypeError: source is a stream, several splits, or has a transform.
        ValueError: No such column, or no single one to choose; labels or class names out of range;
            on access, an image that cannot be decoded, is too small or of the other kind, or a file
            outside `folder`.
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
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(getattr(source, "num_rows", None), dict):
            raise TypeError(
                f"expected one split, got several; choose one of {', '.join(source.num_rows)}."
            )
        if not hasattr(source, "features") or not hasattr(source, "num_rows"):
            raise TypeError(
                "expected a datasets.Dataset, got "
                f"{type(source).__name__}; choose a split, and do not stream."
            )
        if source.format["type"] == "custom":
            raise TypeError(
                "expected a data set without a transform, which is not applied; "
                "pass source.with_format(None)."
            )
        self.source = source
        self.image_shape = checked_shape(image_size, image_channels)
        self.convert_channels = convert_channels
        self.folder = folder
        self._image = _column(source, folder, image_column, "Image", "image_column")
        # A format, which may have been saved with the set, can hide columns.
        plain = source.with_format(None)
        encoded = type(source.features[self._image])(decode=False)
        self._encoded = plain.cast_column(self._image, encoded)
        label = label_column
        if label is None:
            found = _columns(source, "ClassLabel")
            label = found[0] if len(found) == 1 else ""
        self._label = label
        self.class_names: tuple[str, ...] = ()
        if label:
            label = _column(source, folder, label, "ClassLabel", "label_column")
            self.class_names = tuple(source.features[label].names)
            values = [-1 if value is None else int(value) for value in plain[label]]
            self.labels = torch.tensor(values, dtype=torch.int64, device="cpu")
        else:
            self.labels = torch.full((source.num_rows,), -1, dtype=torch.int64, device="cpu")
        # By which messages name items; another number each for a part of a set that was opened.
        self.row_numbers: Sequence[int] = range(len(self))
        try:
            check_class_names(self.class_names)
            check_labels(self.labels, len(self), len(self.class_names))
        except ValueError as error:
            raise damaged(folder or "the data set", str(error).removesuffix(".")) from error

    def __len__(self) -> int:
        return int(self.source.num_rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        number = self.row_numbers[index]
        source = f"item {number} of {printable(self._image)}"
        if self.folder is not None:
            source += f" in {printable(self.folder)}"
        with self._open(source, self._encoded[index][self._image]) as file:
            pixels = decode_image(file, source, self.image_shape, self.convert_channels)
        return pixels, int(self.labels[index])

    def _open(self, source: str, row: dict[str, Any] | None) -> IO[bytes]:
        content, path = (row or {}).get("bytes"), (row or {}).get("path")
        if content is not None:
            return io.BytesIO(content)
        if path is None:
            raise CorruptImageError(f"{source} cannot be decoded (there is none).")
        if self.folder is None:
            raise ValueError(
                f"{source} is not in the data set but in the file {short(path)}, which is not "
                "opened; pass folder=, the folder that holds the files."
            )
        return open_untrusted(Path(self.folder) / path, inside=self.folder)

    def fingerprint(self) -> str:
        """The fingerprint of the set: see `fingerprint`."""
        return fingerprint(self)

    def cache_key(self) -> str:
        """A key that changes with the data set and with the settings of decoding."""
        # The key by which the package's own cache knows the data set and all its transformations.
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
    _need_package()
    import datasets

    root = saved = Path(name)
    if not _is_saved(saved):
        return _explained(root, lambda: datasets.load_dataset(str(name), split=split, **options))
    if os.path.lexists(saved / _DICT):
        splits = _saved_splits(saved)
        if split not in splits:
            raise ValueError(
                f"{printable(saved)} has no split {split!r}; it has "
                f"{short(', '.join(splits), 500)}."
            )
        saved = saved / split
    _check_files(saved, root)
    return _explained(saved, lambda: _validated(datasets.load_from_disk(str(saved))))


def hugging_face_splits(name: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the splits of a data set that `open_hugging_face` can open.

    Raises:
        RuntimeError: The package `datasets` is not installed.
    """
    _need_package()
    import datasets

    saved = Path(name)
    if os.path.lexists(saved / _DICT):
        return _saved_splits(saved)
    if _is_saved(saved):
        return ("train",)  # which is the default of open_hugging_face
    return _explained(saved, lambda: tuple(datasets.get_dataset_split_names(str(name))))


def hugging_face_folder(name: str | os.PathLike[str]) -> Path:
    """Where rows of a data set may name files: its folder, or the cache of the package."""
    _need_package()
    import datasets

    return Path(name) if Path(name).is_dir() else Path(datasets.config.HF_CACHE_HOME)


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` left the folder."""
    return any(os.path.lexists(folder / name) for name in (_INFO, _DICT))


def _saved_splits(folder: Path) -> tuple[str, ...]:
    splits = read_object(folder / _DICT, inside=folder).get("splits")
    if not isinstance(splits, list) or not all(map(_is_plain, splits)):
        raise ValueError(f"{printable(folder / _DICT)} is damaged: splits must be plain names.")
    return tuple(splits)


def _check_files(folder: Path, root: Path) -> None:
    """Raises unless every file that the package will open is a regular file below the root."""
    state = read_object(folder / _STATE, inside=root)
    read_object(folder / _INFO, inside=root)
    for key in ("_data_files", "_indices_data_files"):
        entries = state.get(key) or []
        known = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
        names = [entry.get("filename") for entry in entries] if known else [None]
        if not all(map(_is_plain, names)):
            raise ValueError(f"{printable(folder / _STATE)} is damaged: {key} must name its files.")
        for name in names:
            open_untrusted(folder / str(name), inside=root).close()


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", "..") and PurePath(name).name == name


def _validated(source: datasets.Dataset) -> datasets.Dataset:
    # Arrow trusts the offsets in a file: wrong ones would be read from memory that is not its own.
    source.data.validate(full=True)
    return source


def _explained(folder: Path, load: Callable[[], _T]) -> _T:
    """Adds the name of the folder to whatever the packages raise for damaged files."""
    from datasets.exceptions import DatasetsError

    try:
        return load()
    except (*_LOAD_ERRORS, DatasetsError) as error:
        if not folder.is_dir():  # a name on the hub, which the package's own message names
            raise
        raise ValueError(f"{printable(folder)} is damaged ({short(error)}).") from error


def _need_package() -> None:
    if find_spec("datasets") is None:
        raise RuntimeError(
            "Hugging Face data needs the package datasets: pip install 'vqvae2_fast[hf]'"
        )


def _columns(source: datasets.Dataset, kind: str) -> list[str]:
    """Columns of a feature type of the package, by the type's name."""
    return [name for name, feature in source.features.items() if type(feature).__name__ == kind]


def _column(
    source: datasets.Dataset,
    folder: str | os.PathLike[str] | None,
    wanted: str | None,
    kind: str,
    argument: str,
) -> str:
    found = _columns(source, kind)
    if wanted is None and len(found) == 1:
        return found[0]
    if wanted not in found:
        place = "" if folder is None else f" in {printable(folder)}"
        raise ValueError(
            f"expected {argument} to be one of the columns of type {kind}{place} "
            f"({short(', '.join(found), 500) or 'there are none'}), got {wanted!r}."
        )
    return wanted
