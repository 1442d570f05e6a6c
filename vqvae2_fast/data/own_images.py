"""The images of somebody who names only a folder: looked at first, then decoded into memory.

Size and channels follow from the headers of the files. What is done to the images is said in words.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.console.progress import Progress
from vqvae2_fast.console.words import counted
from vqvae2_fast.data.folder import ImageFolder, image_names, open_image_file
from vqvae2_fast.data.images import (
    ImageSubset,
    ImageTensorDataset,
    check_image_source,
    evenly,
    held_out_of,
)
from vqvae2_fast.data.pixels import DECODE_ERRORS, is_grey, open_image, upright_size
from vqvae2_fast.data.sources import DataOptions, is_source_name, open_splits
from vqvae2_fast.files.printable import printable, short, why_no_folder

if TYPE_CHECKING:
    import os

    from vqvae2_fast.data.images import ImageSource

__all__ = ["LARGEST_SIDE", "SMALLEST_SIDE", "OwnImages", "fitted_side", "open_own_images"]

SMALLEST_SIDE, LARGEST_SIDE = 16, 256
# Channels and side of named sources.
_SHAPES = {"avatars32": (3, 32), "emoji": (3, 32), "fashion": (1, 28)}
_FEW = 0.05  # of the images may be left out as too small for the others
_LEAST_IMAGES = 50
_FEW_OF_CLASS = 10
_HELD_OUT = 0.1
_TIMED = 8  # images


@dataclass(frozen=True)
class OwnImages:
    """Images to train on and others to measure by.

    Args:
        described: What they are in words.
        notes: What a person should know of them, a sentence each.
        scaled: Whether some had another size.
    """

    train_set: ImageTensorDataset
    held_out: ImageTensorDataset
    described: str
    notes: tuple[str, ...] = ()
    scaled: bool = False


@dataclass(frozen=True)
class FolderSurvey:
    """The images of a folder whose headers can be read.

    Args:
        sizes: Height and width of each, in the order of their names.
        grey: How many of them are grey.
    """

    sizes: tuple[tuple[int, int], ...]
    grey: int

    @property
    def described(self) -> str:
        """Sizes (height x width) and kinds."""
        ends = [min(self.sizes, key=min), max(self.sizes, key=min)]
        least, most = (f"{height}x{width}" for height, width in ends)
        kinds = {0: "colour", len(self.sizes): "grey"}
        return (
            f"{least if len(set(self.sizes)) == 1 else f'{least} to {most}'} pixels, "
            f"{kinds.get(self.grey, f'{self.grey:,} of them grey and the others colour')}"
        )


def survey_folder(root: str | os.PathLike[str]) -> FolderSurvey:
    """The sizes and kinds of a folder's images, by their headers.

    Raises:
        ValueError: No images there, or a link out of the folder.
        OSError: A folder that cannot be read.
    """
    folder = Path(root)
    sizes, grey = [], 0
    for name in image_names(folder):
        try:
            with open_image_file(folder / name, folder) as file, open_image(file) as image:
                sizes.append(upright_size(image))
                grey += is_grey(image)
        except DECODE_ERRORS:  # `ImageFolder` names the file and says what to do
            continue
    return FolderSurvey(tuple(sizes), grey)


def fitted_side(side: int) -> int:
    """The largest side of images, from 16 to 256, that models take and that is at most `side`."""
    side = min(side, LARGEST_SIDE)
    return side - side % (4 if side <= 48 else 8)


def open_own_images(
    data: str | Path | Tensor | ImageSource,
    size: int | None,
    usual_side: int,
    *,
    skip_corrupt: bool = False,
    cache: Path | None = None,
    seconds: float = math.inf,
    most_bytes: int | None = None,
    most: int | None = None,
    progress: Progress | None = None,
) -> OwnImages:
    """The images that a user names, in memory.

    Args:
        size: Height and width; None takes the images' own, and at most `usual_side`.
        cache: Folder for what is downloaded or unpacked.
        seconds, most_bytes: If decoding would take longer or more memory, only some of the images
            are taken, spread evenly over them.
        most: The number of training images to take; by default what time and memory allow.

    Raises:
        ValueError: There are too few images, or they are too small or of another size than asked
            for; or as `open_splits` says.
        TypeError: What is no set of images.
    """
    progress = progress or Progress(quiet=True)
    survey = None
    if isinstance(data, Tensor):
        data = ImageTensorDataset(data.cpu())
    if not isinstance(data, str | Path):
        train_set, held_out = _halves(data, size)
    elif is_source_name(str(data)):
        channels, side = _SHAPES.get(str(data).partition(":")[0], (3, usual_side))
        options = DataOptions(data=str(data), cache=cache)
        square = (size or side, size or side)
        opened = open_splits(options, ("train", "held_out"), channels, square, progress)
        train_set, held_out = opened["train"], opened["held_out"]
    else:
        train_set, held_out, survey = _folder(Path(data), size, usual_side, skip_corrupt)
    _check_number(len(train_set) + len(held_out))
    notes = []
    most = most or _affordable(train_set, seconds, most_bytes)
    if most < len(train_set):
        notes.append(
            f"{most:,} of {len(train_set):,} training images are taken, spread evenly over them, "
            "as many as there is time and memory for"
        )
    found = OwnImages(
        _in_memory(train_set, most, "read the images", progress),
        _in_memory(held_out, most, "read those held out", progress),
        "",
    )
    names, labels = found.train_set.class_names, found.train_set.labels
    counts = torch.bincount(labels + 1, minlength=len(names) + 1)[1:].tolist()
    for name, count in zip(names, counts, strict=True):
        if count < _FEW_OF_CLASS:
            notes.append(
                f"class {printable(name)} has only {counted(count, 'image')} to train on, which "
                "can only be memorised"
            )
    if len(notes) > 3:
        others = f"{len(notes) - 2} more classes have fewer than {_FEW_OF_CLASS} images"
        notes = [*notes[:2], others]
    classes = f" in {len(names):,} classes of {min(counts):,} to {max(counts):,}" if names else ""
    channels, height, width = found.train_set.image_shape
    own = f"{height}x{width} pixels, {'grey' if channels == 1 else 'colour'}"
    if survey is not None:
        own = survey.described
    described = (
        f"{len(found.train_set):,} images to train on{classes or ', without classes'}, "
        f"{len(found.held_out):,} held out; {own}"
    )
    scaled = survey is not None and set(survey.sizes) != {(height, width)}
    return OwnImages(found.train_set, found.held_out, described, tuple(notes), scaled)


def _check_number(count: int) -> None:
    if count < _LEAST_IMAGES:
        raise ValueError(
            f"data: expected {_LEAST_IMAGES} images or more, got {count}. From fewer, nothing but "
            "copies can be learnt."
        )


def _folder(
    root: Path, size: int | None, usual_side: int, skip_corrupt: bool
) -> tuple[ImageSource, ImageSource, FolderSurvey]:
    if no_folder := why_no_folder(root):
        raise ValueError(
            f"data: expected a folder of images or the name of a source, got {short(str(root))}, "
            f"which {no_folder}."
        )
    found = survey_folder(root)
    count = len(found.sizes)
    _check_number(count)
    sides = sorted(map(min, found.sizes))
    largest = fitted_side(sides[int(_FEW * count)])
    if largest < SMALLEST_SIDE or (size or 0) > largest:
        wanted = size or SMALLEST_SIDE
        raise ValueError(
            f"data: expected images of {wanted} pixels a side or more, got "
            f"{sum(side < wanted for side in sides):,} of {count:,} that are smaller (the smallest "
            f"has {sides[0]}). "
            + ("Enlarge them." if largest < SMALLEST_SIDE else f"Ask for size={largest} or less.")
        )
    side = size or min(largest, usual_side)
    channels = 1 if found.grey == count else 3
    train_set, held_out = (
        ImageFolder(
            root,
            side,
            image_channels=channels,
            split=split,
            skip_corrupt=skip_corrupt,
            skip_small=sides[0] < side,
            convert_channels=True,
        )
        for split in ("train", "held_out")
    )
    return train_set, held_out, found


def _halves(images: ImageSource, size: int | None) -> tuple[ImageSource, ImageSource]:
    """The images of a set to train on, and the tenth that is held out by a hash of their number."""
    check_image_source("data", images)
    _, height, width = images.image_shape
    if size not in (None, height) or height != width or fitted_side(height) != height:
        raise ValueError(
            "data: expected square images with a side from 16 to 256, a multiple of 4 up to 48 and "
            f"of 8 above, and equal to size, got {height}x{width} and size={size}. Scale them, or "
            "name their folder, whose images are scaled."
        )
    names = [str(row) for row in range(len(images))]
    held = torch.tensor(held_out_of(names, _HELD_OUT), dtype=torch.bool, device="cpu")
    return (
        ImageSubset(images, (~held).nonzero().flatten()),
        ImageSubset(images, held.nonzero().flatten()),
    )


def _affordable(images: ImageSource, seconds: float, most_bytes: int | None) -> int:
    """How many images can be decoded in this time, and fit into this memory."""
    rows = evenly(len(images), _TIMED).tolist()
    start = time.monotonic()
    for row in rows:
        _ = images[row]
    each = (time.monotonic() - start) / len(rows)
    most = min(seconds / each, (most_bytes or math.inf) / math.prod(images.image_shape))
    return max(_LEAST_IMAGES, int(min(most, len(images))))


def _in_memory(
    images: ImageSource, most: int, task_name: str, progress: Progress
) -> ImageTensorDataset:
    rows = evenly(len(images), most)
    if isinstance(images, ImageTensorDataset) and len(rows) == len(images):
        return images
    pixels = torch.empty((len(rows), *images.image_shape), dtype=torch.uint8, device="cpu")
    with progress.task(task_name, len(rows)) as task:
        for number, row in enumerate(rows.tolist()):
            pixels[number] = images[row][0]
            task.update(number + 1)
    names = tuple(getattr(images, "names", ()))
    return ImageTensorDataset(
        pixels,
        images.labels[rows],
        images.class_names,
        tuple(names[row] for row in rows.tolist()) if names else (),
    )
