"""WebDataset shards as an image source: `pip install 'vqvae2_fast[webdataset]'`.

Tar files are read from end to end by the package `webdataset`, once, into a cache on the disk
(image_cache.py): training in an order of its own, and going on exactly where it stopped, needs any
image at any time. Only local files are read, and of a sample only its image and its label: the
package's own decoders, which unpickle some members, are not used.
"""

from __future__ import annotations

import hashlib
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from vqvae2_fast.data.image_cache import open_cache, write_cache
from vqvae2_fast.data.images import check_split, is_held_out
from vqvae2_fast.data.pixels import (
    DECODE_ERRORS,
    FORMATS,
    CorruptImageError,
    check_mode,
    pixels_of,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from vqvae2_fast.data.images import ImageTensorDataset, Split

__all__ = ["load_web_dataset"]

_BATCH = 64  # images
_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff")


def load_web_dataset(
    shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    image_size: int | tuple[int, int],
    cache: str | os.PathLike[str],
    *,
    image_channels: int = 3,
    split: Split = "all",
    held_out_fraction: float = 0.1,
    class_names: Sequence[str] = (),
    label_key: str = "cls",
    convert_channels: bool = False,
    name: str = "webdataset",
    progress: Callable[[int], None] | None = None,
) -> ImageTensorDataset:
    """All samples of the shards, in order, mapped from a cache that is made the first time.

    Args:
        shards: Local .tar files; a string may hold braces, as in "train-{000..099}.tar".
        image_size: (height, width), or one number for both, in pixels.
        cache: Folder of caches, N·C·H·W bytes in all; made again when a shard changes.
        split: "train", "held_out" or "all"; a sample is held out by a hash of its shard's file
            name and its key.
        held_out_fraction: Share of the samples to hold out.
        class_names: One name a class; without them the classes are numbered as far as labels go.
        label_key: Member of a sample that holds its label as a decimal number, or, if it ends in
            "json", as the entry "label" of an object. Samples without it have label -1.
        name: As of `cached_images`: one for each set that shares the cache folder.
        progress: Called with the number of images decoded.

    Raises:
        RuntimeError: The package `webdataset` is not installed.
        ValueError: A shard that is not there or damaged; a sample without an image, or with one
            that cannot be decoded, is too small or of the other kind; a label that is no number.
    """
    if find_spec("webdataset") is None:
        raise RuntimeError(
            "load_web_dataset: needs the package webdataset: pip install 'vqvae2_fast[webdataset]'"
        )
    paths = _local(shards)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    shape = (image_channels, height, width)
    if min(height, width) < 1 or image_channels not in (1, 3):
        raise ValueError(
            "load_web_dataset: image_size must be >= 1 and image_channels 1 or 3, got "
            f"{(height, width)} and {image_channels}."
        )
    check_split("load_web_dataset", split)
    if not 0.0 <= held_out_fraction < 1.0:
        raise ValueError(
            f"load_web_dataset: held_out_fraction must be in [0, 1), got {held_out_fraction}."
        )
    made = (shape, convert_channels, label_key, tuple(class_names), split, held_out_fraction)
    key = _fingerprint(paths, made)
    found = open_cache(cache, name, key)
    if found is not None:
        return found

    keys: list[str] = []
    highest = -1

    def decoded() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal highest
        images: list[Tensor] = []
        labels: list[int] = []
        for sample in _samples(paths):
            where = f"load_web_dataset: sample {sample['__key__']} of {sample['__url__']}"
            label = _label(where, sample, label_key)
            # Classes are numbered as far as the labels of all samples go, whatever the split.
            highest = max(highest, label)
            if class_names and label >= len(class_names):
                raise ValueError(f"{where} has label {label} of {len(class_names)} classes.")
            if split != "all" and _held_out(sample, held_out_fraction) != (split == "held_out"):
                continue
            images.append(_pixels(where, sample, shape, convert_channels))
            labels.append(label)
            keys.append(sample["__key__"])
            if len(images) == _BATCH:
                yield torch.stack(images), torch.tensor(labels)
                images, labels = [], []
                if progress is not None:
                    progress(len(keys))
        if images:
            yield torch.stack(images), torch.tensor(labels)

    return write_cache(
        cache,
        name,
        key,
        decoded(),
        shape,
        lambda: tuple(class_names) or tuple(str(label) for label in range(highest + 1)),
        lambda: tuple(keys),
    )


def _held_out(sample: dict[str, Any], fraction: float) -> bool:
    return is_held_out(f"{Path(sample['__url__']).name}/{sample['__key__']}", fraction)


def _local(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    from braceexpand import braceexpand  # comes with webdataset

    if isinstance(shards, str):
        names: list[str | os.PathLike[str]] = list(braceexpand(shards))
    else:
        names = list(shards) if isinstance(shards, (list, tuple)) else [shards]  # type: ignore[list-item]
    paths = [Path(shard).absolute() for shard in names]
    for shard, path in zip(names, paths, strict=True):
        if not path.is_file():
            raise ValueError(
                f"load_web_dataset: shard {shard} is no local file; fetch shards that are "
                "elsewhere first."
            )
    if not paths:
        raise ValueError("load_web_dataset: expected at least one shard, got none.")
    return paths


def _fingerprint(paths: list[Path], made: tuple[object, ...]) -> str:
    digest = hashlib.sha256(repr(made).encode())
    for path in paths:
        status = path.stat()
        digest.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _samples(paths: list[Path]) -> Iterator[dict[str, Any]]:
    import tarfile

    import webdataset

    # Every process reads all shards, whatever torch.distributed says.
    urls = [f"file:{path}" for path in paths]
    stream = webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None)
    try:
        yield from stream
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"load_web_dataset: a shard is damaged ({error}).") from error


def _pixels(
    where: str, sample: dict[str, Any], shape: tuple[int, int, int], convert_channels: bool
) -> Tensor:
    found = [key for key in sample if key.lower().split(".")[-1] in _EXTENSIONS]
    if len(found) != 1:
        held = ", ".join(key for key in sample if not key.startswith("__"))
        raise ValueError(f"{where} must hold one image ({', '.join(_EXTENSIONS)}), holds {held}.")
    try:
        with Image.open(io.BytesIO(sample[found[0]]), formats=FORMATS) as image:
            pixels = pixels_of(image, shape) if image.mode not in ("I", "F") else None
    except DECODE_ERRORS as error:
        raise CorruptImageError(f"{where} cannot be decoded ({error}).") from error
    check_mode(where, image, shape[0], convert_channels)
    if pixels is None:
        raise ValueError(
            f"{where} is {image.height}x{image.width} (height x width), smaller than image_size "
            f"{shape[1]}x{shape[2]}."
        )
    return pixels


def _label(where: str, sample: dict[str, Any], key: str) -> int:
    if key not in sample:
        return -1
    content = sample[key]
    try:
        if key.endswith("json"):
            label = json.loads(content)["label"]
            if type(label) is not int:
                raise ValueError(f"label is {label!r}")
        else:
            label = int(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: {key} holds no label ({error}).") from error
    if label < -1:
        raise ValueError(f"{where}: {key} holds label {label}.")
    return int(label)
