"""Images by the name of their source, for every command that takes images.

A new source is a function below with `@_source`, which says how it is named and what it is; help
texts and error messages are made from that.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from vqvae2_fast.console import Progress
from vqvae2_fast.data.avatars import MAX_SIZE, MIN_SIZE, avatar_options, load_avatars
from vqvae2_fast.data.emoji import TILE, load_emoji
from vqvae2_fast.data.fashion_mnist import DEBIAN_FOLDER, load_fashion_mnist
from vqvae2_fast.data.folder import ImageFolder
from vqvae2_fast.data.groups import Subclasses, SubclassImages
from vqvae2_fast.data.hugging_face import (
    HuggingFaceImages,
    hugging_face_folder,
    hugging_face_splits,
    open_hugging_face,
)
from vqvae2_fast.data.image_cache import cache_key, cached_images, open_cache
from vqvae2_fast.data.images import held_out_of
from vqvae2_fast.data.small_avatars import load_small_avatars
from vqvae2_fast.data.web_dataset import load_web_dataset
from vqvae2_fast.files.kinds import check_field, integer
from vqvae2_fast.files.printable import short, why_no_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqvae2_fast.console.progress import Task
    from vqvae2_fast.data.images import ImageSource, Split

__all__ = ["DataOptions", "is_source_name", "open_images", "open_splits", "warn_of_folder"]

_HELD_OUT_SPLITS = ("held_out", "validation", "valid", "test")  # tried in this order
_REPORT = 10_048  # images: a multiple of the batch that tar files are decoded in
_EXPECTED = "data: expected the folder of a data set"


class _Source(NamedTuple):
    """A kind of source: how the user names it, what it is, and how it is opened."""

    usage: str
    what: str
    open: Callable[[str, _Wanted], ImageSource]


# The key is what stands before the colon of a name; "" is the path of a folder.
_SOURCES: dict[str, _Source] = {}


def _source(
    prefix: str, usage: str, what: str
) -> Callable[[Callable[[str, _Wanted], ImageSource]], None]:
    """Registers a function that opens the images of a name, which is what follows the colon."""

    def register(function: Callable[[str, _Wanted], ImageSource]) -> None:
        _SOURCES[prefix] = _Source(usage, what, function)

    return register


@dataclass(frozen=True)
class _Wanted:
    """What `open_images` was asked for."""

    options: DataOptions
    split: Split
    channels: int
    size: tuple[int, int]
    progress: Progress
    write: bool
    expected: str

    def error(self, what: str) -> ValueError:
        return ValueError(f"data={short(self.options.data)}: {what}")

    def cache_name(self, kind: str, name: str) -> str:
        """One name per set, split and size; the cache keeps only the latest version of a name."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        height, width = self.size
        return f"{kind}-{digest}-{self.split}-{self.channels}x{height}x{width}"

    def cached(self, images: ImageFolder | HuggingFaceImages, name: str) -> ImageSource:
        """The images mapped from a cache, if one may be made."""
        folder = self.options.cache
        if folder is None or not self.write:
            return images
        found = open_cache(folder, name, cache_key(images))
        if found is not None:
            return found
        with self.progress.task(f"decode {self.split}", len(images)) as task:
            return cached_images(
                images, folder, name=name, progress=lambda done, total: task.update(done)
            )


@_source(
    "", "FOLDER", "images in a folder: flat, one subfolder for each class, or train/, held_out/"
)
def _folder(name: str, wanted: _Wanted) -> ImageSource:
    no_folder = why_no_folder(Path(name))
    if no_folder is not None:
        choice = ", ".join(f"`{source.usage}`" for key, source in _SOURCES.items() if key)
        remedy = " Name the folder that it is in." if Path(name).exists() else ""
        raise ValueError(
            f"{wanted.expected} or one of {choice}, got {short(name)}, which {no_folder}.{remedy}"
        )
    options = wanted.options
    images = ImageFolder(
        name,
        wanted.size,
        image_channels=wanted.channels,
        split=wanted.split,
        held_out_fraction=options.held_out_fraction,
        skip_corrupt=options.skip_corrupt,
        skip_small=options.skip_small,
        convert_channels=options.convert_channels,
    )
    return wanted.cached(images, wanted.cache_name("folder", str(Path(name).resolve())))


@_source(
    "emoji",
    "emoji[:subcategories]",
    "the embedded 3,127 emoji of 32x32, in nine classes or in their 96 subcategories",
)
def _emoji(name: str, wanted: _Wanted) -> ImageSource:
    height, width = wanted.size
    if name not in ("", "subcategories"):
        raise wanted.error("expected emoji or emoji:subcategories.")
    if wanted.channels != 3 or height != width or TILE % height:
        raise wanted.error(
            f"the emoji are square images of 3 channels and a side that divides {TILE}, and the "
            f"model takes {wanted.channels} channels of {height}x{width}. Name the folder of your "
            "images, or choose another preset."
        )
    return load_emoji(wanted.split, height, subcategories=bool(name))


@_source("avatars32", "avatars32", "the embedded 4,800 avatars of 32x32, in eight styles")
def _avatars32(name: str, wanted: _Wanted) -> ImageSource:
    if name or (wanted.channels, *wanted.size) != (3, TILE, TILE):
        raise wanted.error(
            f"avatars32 are images of 3 channels of {TILE}x{TILE}, and the model takes "
            f"{wanted.channels} of {wanted.size[0]}x{wanted.size[1]}; preset=avatars32 fits. "
            "avatars:STYLE draws others."
        )
    return load_small_avatars(wanted.split)


@_source("fashion", "fashion[:FOLDER]", "the IDX files of Fashion-MNIST")
def _fashion(name: str, wanted: _Wanted) -> ImageSource:
    try:
        images = load_fashion_mnist(name or DEBIAN_FOLDER, wanted.split)
    except ValueError as error:
        raise wanted.error(re.sub(r"^\w+: ", "", str(error))) from error
    if images.image_shape != (wanted.channels, *wanted.size):
        raise wanted.error(
            f"these images are {list(images.image_shape)}, and the model takes "
            f"{[wanted.channels, *wanted.size]}; preset=fashion28 fits."
        )
    return images


@_source(
    "avatars",
    "avatars[:STYLE+STYLE,count=N,seed=N]",
    "avatars that are drawn in any number, with their styles as classes",
)
def _avatars(name: str, wanted: _Wanted) -> ImageSource:
    height, width = wanted.size
    if wanted.channels != 3 or height != width or not MIN_SIZE <= height <= MAX_SIZE:
        raise wanted.error(
            f"avatars are square images of 3 channels and {MIN_SIZE} to {MAX_SIZE} pixels, and the "
            f"model takes {wanted.channels} channels of {height}x{width}; preset=avatars64 fits."
        )
    options = wanted.options
    with ExitStack() as stack:
        tasks: list[Task] = []

        def report(done: int, total: int) -> None:  # not called if a cache has the images
            if not tasks:
                tasks.append(
                    stack.enter_context(wanted.progress.task(f"draw {wanted.split}", total))
                )
            tasks[0].update(done)

        return load_avatars(
            wanted.split,
            height,
            **avatar_options(name),
            held_out_fraction=options.held_out_fraction,
            cache=options.cache,
            keep=wanted.write,
            progress=report,
        )


@_source("hf", "hf:NAME", "a Hugging Face data set, or its folder")
def _hugging_face(name: str, wanted: _Wanted) -> ImageSource:
    if not name:
        raise wanted.error("expected the name of a data set or its folder after `hf:`.")
    options, split = wanted.options, wanted.split
    splits = hugging_face_splits(name)
    chosen: list[int] | None = None
    held_out = next((known for known in _HELD_OUT_SPLITS if known in splits), None)
    if "train" not in splits:
        raise wanted.error(f"expected a split `train`, found {short(', '.join(splits))}.")
    if split == "all" or held_out is None:
        source = open_hugging_face(name)
        if split == "all" and held_out is not None:
            from datasets import concatenate_datasets

            source = concatenate_datasets([source, open_hugging_face(name, held_out)])
        elif split != "all":
            names = [str(index) for index in range(len(source))]
            held = held_out_of(names, options.held_out_fraction)
            chosen = [i for i, out in enumerate(held) if out == (split == "held_out")]
            source = source.select(chosen)
    else:
        source = open_hugging_face(name, "train" if split == "train" else held_out)
    images = HuggingFaceImages(
        source,
        wanted.size,
        image_channels=wanted.channels,
        convert_channels=options.convert_channels,
        folder=hugging_face_folder(name),
    )
    if not len(images):
        raise wanted.error(f"split {split} is empty; change held_out_fraction.")
    if chosen is not None:
        images.row_numbers = chosen
    return wanted.cached(images, wanted.cache_name("hf", name))


@_source("webdataset", "webdataset:SHARDS", "tar files, as in webdataset:photos-{000..099}.tar")
def _web_dataset(name: str, wanted: _Wanted) -> ImageSource:
    options = wanted.options
    if not name:
        raise wanted.error("expected tar files after `webdataset:`, as in train-{000..099}.tar.")
    if options.cache is None and wanted.write:
        raise wanted.error("tar files are decoded into a cache first; name its folder by cache=.")

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
        raise wanted.error(f"split {wanted.split} is empty; change held_out_fraction.")
    return images


@dataclass
class DataOptions:
    """Where images come from."""

    data: Annotated[
        str,
        tyro.conf.arg(
            help="Where images come from: "
            + "; ".join(f"`{source.usage}` ({source.what})" for source in _SOURCES.values())
            + "."
        ),
    ] = "emoji"
    cache: Path | None = None
    """Folder for decoded images: each set is decoded once, then mapped. WebDatasets need it."""
    held_out_fraction: float = 0.1
    """Share of the images that is never trained on, where the source has no split of its own."""
    skip_corrupt: bool = False
    """Leave out files of a folder that cannot be decoded, with a warning."""
    skip_small: bool = False
    """Leave out images of a folder that are smaller than the model's, with a warning."""
    convert_channels: bool = False
    """Turn grey images to RGB, or RGB images to grey, where the model takes the other."""
    subclasses: int = 0
    """Split each class into this many equal parts of images that look alike, as classes such as
    "Coat - 07": samples of a prior that knows them are nearer to the images. 0 splits none."""

    def __post_init__(self) -> None:
        check_field("subclasses", self.subclasses, integer(0))


def open_images(
    options: DataOptions,
    split: Split,
    channels: int,
    size: tuple[int, int],
    progress: Progress | None = None,
    *,
    write: bool = True,
    expected: str = _EXPECTED,
) -> ImageSource:
    """The images of a split; arguments and errors are those of `open_splits`."""
    opened = open_splits(
        options, (split,), channels, size, progress, write=write, expected=expected
    )
    return opened[split]


def is_source_name(data: str) -> bool:
    """Whether these are images of a named set, such as `emoji`; if not, it should be a folder."""
    return data.partition(":")[0] in _SOURCES.keys() - {""}


def warn_of_folder(data: str) -> None:
    """Warns of a folder that has the name of a set, which is taken in its place."""
    if Path(data).exists():
        warnings.warn(
            f"{short(data)} stands for the images of that name, and not for the folder "
            f"{short(data)}. For the folder write ./{short(data)}.",
            stacklevel=2,
        )


def open_splits(
    options: DataOptions,
    splits: Sequence[Split],
    channels: int,
    size: tuple[int, int],
    progress: Progress | None = None,
    *,
    write: bool = True,
    expected: str = _EXPECTED,
) -> dict[Split, ImageSource]:
    """The images of splits, in the channels and size (height, width) that a model takes.

    To divide classes into parts takes a pass over the training images, whichever the splits, and
    one over each of the others.

    Args:
        progress: Shows the decoding into the cache.
        write: Whether a cache may be made; without it images are decoded when they are asked for.
        expected: How the error begins if there is no such source.

    Raises:
        ValueError: No such source, images that the model does not take, or as the source does.
        RuntimeError: The source needs a package that is not installed.
    """
    prefix, _, name = options.data.partition(":")
    if is_source_name(options.data):
        warn_of_folder(options.data)
    else:
        prefix, name = "", options.data
    progress = progress or Progress(quiet=True)

    def opened(split: Split) -> ImageSource:
        wanted = _Wanted(options, split, channels, size, progress, write, expected)
        return _SOURCES[prefix].open(name, wanted)

    found = {split: opened(split) for split in splits}
    if not options.subclasses:
        return found
    train = found["train"] if "train" in found else opened("train")
    parts = Subclasses.of(train, options.subclasses)
    return {
        split: SubclassImages(train, parts.labels, parts.names)
        if split == "train"
        else parts.split(images)
        for split, images in found.items()
    }
