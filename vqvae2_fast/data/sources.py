"""Images by the name of their source, for every command that takes images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vqvae2_fast.console import Progress
from vqvae2_fast.data import (
    HuggingFaceImages,
    ImageFolder,
    cached_images,
    hugging_face_splits,
    load_emoji,
    load_fashion_mnist,
    load_web_dataset,
    open_hugging_face,
)
from vqvae2_fast.data.image_cache import open_cache
from vqvae2_fast.data.images import is_held_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.data import ImageSource, Split

__all__ = ["DataOptions", "open_images"]

_FASHION = "/usr/share/datasets/fashion-mnist"
_HELD_OUT_SPLITS = ("held_out", "validation", "valid", "test")  # the first that a set has
_REPORT = 10_048  # images: a multiple of the batch that tar files are decoded in


@dataclass
class DataOptions:
    """Where images come from."""

    data: str = "emoji"
    """A folder of images: flat, one subfolder a class, or either below train/ and held_out/;
    `emoji` (embedded); `fashion` or `fashion:FOLDER` (Fashion-MNIST's IDX files); `hf:NAME` (a
    Hugging Face data set, or its folder); `webdataset:SHARDS` (tar files, as in
    webdataset:photos-{000..099}.tar)."""
    cache: Path | None = None
    """Folder to keep decoded images in: decoded once, then mapped. A WebDataset needs it."""
    held_out_fraction: float = 0.1
    """Share of the images that is never trained on, where the source has no split of its own."""
    skip_corrupt: bool = False
    """Leave out files of a folder that cannot be decoded, with a warning."""
    convert_channels: bool = False
    """Turn grey images to RGB or RGB ones to grey where the model wants the other."""


def open_images(
    options: DataOptions,
    split: Split,
    channels: int,
    size: tuple[int, int],
    progress: Progress | None = None,
    *,
    write: bool = True,
) -> ImageSource:
    """The images of a split, in the channels and size (height, width) that a model takes.

    Args:
        progress: Shows the decoding into the cache.
        write: Whether a cache may be made; without it images are decoded when they are asked for.

    Raises:
        ValueError: No such source, images that the model does not take, or as the source does.
        RuntimeError: The source needs a package that is not installed.
    """
    kind, _, name = options.data.partition(":")
    if Path(options.data).is_dir() or kind not in _OPENERS:
        kind, name = "", options.data
    wanted = Wanted(options, split, channels, size, progress or Progress(quiet=True), write)
    return _OPENERS[kind](name, wanted)


@dataclass(frozen=True)
class Wanted:
    """What `open_images` was asked for."""

    options: DataOptions
    split: Split
    channels: int
    size: tuple[int, int]
    progress: Progress
    write: bool

    def error(self, what: str) -> ValueError:
        return ValueError(f"--data {self.options.data}: {what}")

    def cache_name(self, kind: str, name: str) -> str:
        """One for each set, split and size: of a name the cache keeps the latest version alone."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        height, width = self.size
        return f"{kind}-{digest}-{self.split}-{self.channels}x{height}x{width}"


def _folder(name: str, wanted: Wanted) -> ImageSource:
    if not Path(name).is_dir():
        raise ValueError(
            "--data: expected a folder of images, emoji, fashion, fashion:FOLDER, hf:NAME or "
            f"webdataset:SHARDS, got {name!r}."
        )
    options = wanted.options
    images = ImageFolder(
        name,
        wanted.size,
        image_channels=wanted.channels,
        split=wanted.split,
        held_out_fraction=options.held_out_fraction,
        skip_corrupt=options.skip_corrupt,
        convert_channels=options.convert_channels,
    )
    return _cached(images, wanted, wanted.cache_name("folder", str(Path(name).resolve())))


def _emoji(name: str, wanted: Wanted) -> ImageSource:
    height, width = wanted.size
    if name or wanted.channels != 3 or height != width:
        raise wanted.error(
            "`emoji` are square images of 3 channels, the model takes "
            f"{wanted.channels} channels of {height}x{width}."
        )
    return load_emoji(wanted.split, height)


def _fashion(name: str, wanted: Wanted) -> ImageSource:
    images = load_fashion_mnist(name or _FASHION, wanted.split)
    if images.image_shape != (wanted.channels, *wanted.size):
        raise wanted.error(
            f"these images are {list(images.image_shape)}, the model takes "
            f"{[wanted.channels, *wanted.size]}; --preset fashion28 fits."
        )
    return images


def _hugging_face(name: str, wanted: Wanted) -> ImageSource:
    if not name:
        raise wanted.error("expected the name of a data set or its folder after `hf:`.")
    options, split = wanted.options, wanted.split
    splits = hugging_face_splits(name)
    held_out = next((known for known in _HELD_OUT_SPLITS if known in splits), None)
    if "train" not in splits:
        raise wanted.error(f"expected a split `train`, there are {', '.join(splits)}.")
    if split == "all" or held_out is None:
        source = open_hugging_face(name)
        if split == "all" and held_out is not None:
            from datasets import concatenate_datasets

            source = concatenate_datasets([source, open_hugging_face(name, held_out)])
        elif split != "all":
            chosen = [
                index
                for index in range(len(source))
                if is_held_out(str(index), options.held_out_fraction) == (split == "held_out")
            ]
            source = source.select(chosen)
    else:
        source = open_hugging_face(name, "train" if split == "train" else held_out)
    images = HuggingFaceImages(
        source,
        wanted.size,
        image_channels=wanted.channels,
        convert_channels=options.convert_channels,
    )
    if not len(images):
        raise wanted.error(f"split {split} is empty; change --held-out-fraction.")
    return _cached(images, wanted, wanted.cache_name("hf", name))


def _web_dataset(name: str, wanted: Wanted) -> ImageSource:
    options = wanted.options
    if not name:
        raise wanted.error("expected tar files after `webdataset:`, as in train-{000..099}.tar.")
    if options.cache is None and wanted.write:
        raise wanted.error("tar files are decoded into a cache first; name its folder by --cache.")

    def report(count: int) -> None:
        if count % _REPORT == 0:
            wanted.progress.say(f"decode {wanted.split}  {count} images")

    with TemporaryDirectory() as temporary:  # whose file stays mapped when its name is gone
        images = load_web_dataset(
            name,
            wanted.size,
            options.cache if wanted.write and options.cache else temporary,
            image_channels=wanted.channels,
            split=wanted.split,
            held_out_fraction=options.held_out_fraction,
            convert_channels=options.convert_channels,
            name=wanted.cache_name("webdataset", name),
            progress=report,
        )
    if not len(images):
        raise wanted.error(f"split {wanted.split} is empty; change --held-out-fraction.")
    return images


def _cached(images: ImageFolder | HuggingFaceImages, wanted: Wanted, name: str) -> ImageSource:
    folder = wanted.options.cache
    if folder is None or not wanted.write:
        return images
    found = open_cache(folder, name, images.fingerprint())
    if found is not None:
        return found
    with wanted.progress.task(f"decode {wanted.split}", len(images)) as task:
        return cached_images(
            images, folder, name=name, progress=lambda done, total: task.update(done)
        )


# By what stands before the colon; "" is the path of a folder.
_OPENERS: dict[str, Callable[[str, Wanted], ImageSource]] = {
    "": _folder,
    "emoji": _emoji,
    "fashion": _fashion,
    "hf": _hugging_face,
    "webdataset": _web_dataset,
}
