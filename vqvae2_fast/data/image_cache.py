"""Images as bytes in files, for sets larger than memory.

A cache has a decoded set: decode once, train for many epochs. It is a folder <name>-<digest> with
images.u8, uint8 `[N, C, H, W]` row by row, and cache.json, renamed into place when complete, and
mapped. The digest covers everything that the pixels depend on: a set that changed gets another
cache, and the old one is removed.

`StoredImages` were made (reconstructions, samples) for one measurement. They are read, not mapped:
a mapped file that another process cuts off ends this one by SIGBUS.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vqvae2_fast.data.batches import raw_in_order
from vqvae2_fast.data.images import ImageSource, ImageTensorDataset, to_uint8
from vqvae2_fast.files.durable import (
    explained,
    new_folder,
    replace_file,
    sync_file,
    sync_folder,
    write_all,
)
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.files.mapped import MappedFile, check_utf8
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import check_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

__all__ = [
    "CacheableSource",
    "StoredImages",
    "cached_images",
    "open_cache",
    "store_images",
    "write_cache",
]


VERSION = 1
_BATCH = 64  # images
_META = "cache.json"
_IMAGES = "images.u8"
_FREE_META_BYTES = 16 * 2**20


class CacheableSource(ImageSource, Protocol):
    """A source that can say when its images changed.

    A source may also have `cache_key()`, which is then used instead of its fingerprint: it sees
    every change of a file, even one that leaves the set the same.
    """

    def fingerprint(self) -> str: ...


def cache_key(dataset: CacheableSource) -> str:
    """A key for everything that the cached pixels of a source depend on."""
    return str(getattr(dataset, "cache_key", dataset.fingerprint)())


def cached_images(
    dataset: CacheableSource,
    folder: str | os.PathLike[str],
    *,
    name: str = "images",
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ImageTensorDataset:
    """The set, decoded into a file below `folder` and mapped from there; N·C·H·W bytes.

    Args:
        dataset: An `ImageFolder` or another source with a fingerprint.
        folder: The folder of caches; made if it is not there.
        name: Older caches of this name are removed: use another one for each set and split in the
            folder.
        num_workers: Processes that decode.
        progress: Called with the number of images decoded and the number of all images.

    Raises:
        ValueError: A name that is a path; a folder whose path is not UTF-8; an image that cannot
            be decoded.
        OSError: The disk is full or fails; nothing is left behind.
    """
    names = tuple(getattr(dataset, "names", ()))

    def content() -> Iterable[tuple[Tensor, Tensor]]:
        done = 0
        for images, labels in raw_in_order(dataset, _BATCH, num_workers=num_workers):
            yield images, labels
            done += len(images)
            if progress is not None:
                progress(done, len(dataset))

    key = cache_key(dataset)
    found = open_cache(folder, name, key)
    if found is not None:
        return found
    return write_cache(
        folder,
        name,
        key,
        content(),
        dataset.image_shape,
        lambda: dataset.class_names,
        lambda: names,
    )


def open_cache(folder: str | os.PathLike[str], name: str, key: str) -> CachedImages | None:
    """The cache of this name and key, or None if there is none that is whole."""
    return _open(_path(folder, name, key))


class CachedImages(ImageTensorDataset):
    """A set mapped from its file, which is checked before each use."""

    def __init__(
        self,
        file: MappedFile,
        shape: tuple[int, int, int, int],
        labels: Tensor,
        class_names: tuple[str, ...],
        names: tuple[str, ...],
        extra: dict[str, Any],
    ) -> None:
        super().__init__(file.bytes().view(shape), labels, class_names, names)
        self._file = file
        self.extra = extra

    @property
    def images(self) -> Tensor:
        self._file.bytes()
        return self._images


def _open(path: Path) -> CachedImages | None:
    try:
        size = check_regular(path / _IMAGES, links=False).st_size
        # Labels and names take less than their images, unless these are tiny.
        meta = read_object(path / _META, inside=path, max_bytes=_FREE_META_BYTES + size)
        shape = _shape(meta)
        if shape is None or math.prod(shape) != size:
            return None
        return CachedImages(
            MappedFile(path / _IMAGES, size),
            shape,
            torch.tensor(meta["labels"], dtype=torch.int64, device="cpu"),
            tuple(meta["class_names"]),
            tuple(meta["names"]),
            dict(meta.get("extra", {})),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, RuntimeError):  # damaged: made again
        return None


def write_cache(
    folder: str | os.PathLike[str],
    name: str,
    key: str,
    batches: Iterable[tuple[Tensor, Tensor]],
    image_shape: tuple[int, int, int],
    class_names: Callable[[], tuple[str, ...]],
    names: Callable[[], tuple[str, ...]],
    extra: Callable[[], dict[str, Any]] = dict,
) -> CachedImages:
    """Makes a cache of batches of uint8 images and labels; the rest is asked for at the end.

    Args:
        extra: What else a source keeps of its images, as JSON.
    """
    path = _path(folder, name, key)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(path) as part:
        labels: list[int] = []
        with (part / _IMAGES).open("xb", buffering=0) as file:
            for images, batch_labels in batches:
                with _explained(path):
                    write_all(file, images.contiguous().numpy().tobytes())
                labels += batch_labels.tolist()
            with _explained(path):
                sync_file(file)
        meta = {
            "kind": "image_cache",
            "version": VERSION,
            "shape": [len(labels), *image_shape],
            "class_names": class_names(),
            "labels": labels,
            "names": names(),
            "extra": extra(),
        }
        with _explained(path):
            replace_file(part / _META, json.dumps(meta).encode("utf-8"))
            sync_folder(part)
            _replace_folder(part, path)
    for old in path.parent.glob(f"{glob.escape(name)}-*"):
        if old != path and len(old.name) == len(path.name) and (old / _META).is_file():
            shutil.rmtree(old, ignore_errors=True)
    made = _open(path)
    if made is None:
        raise RuntimeError(f"{path} could not be read after it was written.")
    return made


def _explained(path: Path) -> AbstractContextManager[None]:
    return explained(
        f"cannot write {path}",
        "Earlier caches are as they were",
        then="start again, or name another folder",
    )


def _replace_folder(part: Path, path: Path) -> None:
    """Renames a folder into place, unless another process has put an equal one there meanwhile."""
    if path.exists() and _open(path) is None:
        shutil.rmtree(path)
    try:
        os.rename(part, path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(part)
    sync_folder(path.parent)


def _path(folder: str | os.PathLike[str], name: str, key: str) -> Path:
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"name must be a plain file name, got {name!r}.")
    check_utf8(Path(folder))  # before hours of decoding
    digest = hashlib.sha256(f"{VERSION}/{key}".encode()).hexdigest()[:16]
    return Path(folder) / f"{name}-{digest}"


def _shape(meta: Any) -> tuple[int, int, int, int] | None:
    """The shape that cache.json names, if it is one of ours."""
    if not isinstance(meta, dict):
        return None
    shape: Any = meta.get("shape")
    fits = (
        meta.get("kind") == "image_cache"
        and meta.get("version") == VERSION
        and isinstance(shape, list)
        and len(shape) == 4
        and all(type(n) is int and 0 <= n < 2**40 for n in shape)
        and {"labels", "names", "class_names"} <= set(meta)
    )
    return (shape[0], shape[1], shape[2], shape[3]) if fits else None


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
