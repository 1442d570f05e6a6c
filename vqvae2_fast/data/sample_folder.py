"""A folder of drawn images with an index. It is whole at every moment: a killed run can continue.

images/00000.png ...   one file per sample, named by its number
samples.jsonl          one line per sample: `sample`, `file`, and what its writer says of it; `file`
                       is null for a sample that was drawn and rejected
settings.json          how the samples are drawn, and how many there are to be

An image gets its name when its bytes are on the disk, and a line is added when its image has its
name. So the image of each line is whole; an image without a line is of a batch that was cut off,
and is drawn again. When all samples are there the lines are sorted.

A folder is not trusted: only regular files in it are read. A line of the index may
name no file but that of its sample.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from vqvae2_fast.data.image_cache import StoredImages, store_images
from vqvae2_fast.data.pixels import DECODE_ERRORS, open_image
from vqvae2_fast.files.durable import (
    lock_file,
    locked,
    part_of,
    replace_file,
    sync_file,
    sync_folder,
    write_all,
)
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

__all__ = [
    "IMAGES",
    "INDEX",
    "SETTINGS",
    "SampleFolder",
    "end_of_lines",
    "image_name",
    "labelled_samples",
    "line_of",
    "lines_of",
    "read_index",
    "read_sample",
    "read_settings",
    "samples_of_folder",
]


IMAGES, INDEX = "images", "samples.jsonl"
_MAX_LINE = 2**20  # bytes


def image_name(sample: int) -> str:
    """Path of a sample's image in the folder."""
    return f"{IMAGES}/{sample:05d}.png"


def read_index(path: Path) -> Iterator[dict[str, Any]]:
    """The samples that the index of a folder lists, in the order of its lines.

    A run in progress adds lines in the order in which batches finish, and sorts them at its end.

    Raises:
        ValueError: A line that is not a JSON object with a sample's number, or that names another
            file than the sample's. (A last line without its end was cut off while it was written:
            it is left out.)
    """
    return (row for row, _ in lines_of(path / INDEX))


def lines_of(index: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows of an index with their bytes; a last row that was cut off is left out."""
    try:
        opened = open_untrusted(index, inside=index.parent)
    except FileNotFoundError:
        return
    with opened as file:
        for number, line in enumerate(_read_lines(file), start=1):
            if not line.endswith(b"\n"):
                if len(line) < _MAX_LINE:
                    return
                raise ValueError(f"{printable(index)}: line {number} is longer than {_MAX_LINE}.")
            yield _checked_row(line, f"{printable(index)}: line {number} is damaged"), line


def _read_lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE):
        yield line


def _checked_row(line: bytes, damaged: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{damaged}: {short(error)}.") from error
    if not isinstance(row, dict) or type(row.get("sample")) is not int or row["sample"] < 0:
        raise ValueError(f"{damaged}: it has no sample number.")
    name = image_name(row["sample"])
    if row.setdefault("file", name) not in (None, name):
        raise ValueError(f"{damaged}: expected file {name} or null, got {short(row['file'])}.")
    if not isinstance(row.get("class"), str | None):
        raise ValueError(f"{damaged}: expected class a name or null, got {short(row['class'])}.")
    return row


def end_of_lines(file: FileIO) -> int:
    """Where the last complete line ends: a writer may have been killed while it wrote another."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
        return size
    file.seek(0)
    return file.readall().rfind(b"\n") + 1


def line_of(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


SETTINGS = "settings.json"
_VERSION = 1
_WRITERS = 4  # threads that wait for the disk: four take half the time, eight no less
_KINDS = ("PNG of mode L", "PNG of mode RGB")
# What every PNG file begins with, and its last chunk.
_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"


def read_sample(path: Path, sample: int) -> Tensor:
    """The image of a sample in a folder, uint8 `[C, H, W]`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a regular file in the folder, cannot be decoded, or is not a PNG of
            grey or RGB in 8 bits, as samples are.
    """
    name = path / image_name(sample)
    with open_untrusted(name, inside=path) as file:
        try:
            with open_image(file) as image:
                kind = f"{image.format} of mode {image.mode}"
                pixels = np.array(image) if kind in _KINDS else None
        except DECODE_ERRORS as error:
            raise ValueError(f"{printable(name)} cannot be decoded: {short(error)}.") from error
    if pixels is None:
        raise ValueError(
            f"{printable(name)}: expected a {' or a '.join(_KINDS)}, got a {kind}. Convert it, or "
            "delete it and draw it again with `vqvae2-fast sample --resume`."
        )
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


class SampleFolder:
    """A folder that this process writes samples to, alone or with the others of its run.

    One process of a run makes it by `begin` and finds what is missing; the others then `join`. A
    folder takes one run at a time, until it is closed.
    """

    def __init__(self, out: Path, count: int) -> None:
        self.path, self.count = out, count
        if (out / IMAGES).is_symlink():
            raise ValueError(f"out: {printable(out / IMAGES)} is a link, not a folder.")
        self._lock = open_untrusted(out / IMAGES / ".lock", "ab")

    @classmethod
    def begin(
        cls,
        out: Path,
        count: int,
        settings: dict[str, Any],
        *,
        resume: bool = False,
        alone: bool = True,
    ) -> SampleFolder:
        """A new folder for samples 0..count-1, or with `resume` one that was begun before.

        Args:
            settings: Everything that determines the images, ready for JSON; a folder keeps its
                first.
            alone: Whether no other process will `join`.

        Raises:
            ValueError: The folder holds samples and `resume` is not set; it was begun with other
                settings or for more samples; or it holds files of something else.
            RuntimeError: Another run is writing to it.
        """
        before = read_settings(out)
        if before is not None and not resume:
            raise ValueError(
                f"out: {out} holds samples already. Continue there with resume, or name "
                "another folder."
            )
        images = out / IMAGES
        found = {*out.glob("[!.]*"), *images.glob("[!.]*")} - {images}
        if before is None and found:
            raise ValueError(
                f"out: {out} holds files of something else ({min(found).name}); name another "
                "folder."
            )
        images.mkdir(parents=True, exist_ok=True)
        folder = cls(out, count)
        try:
            if not lock_file(folder._lock, block=False):
                raise RuntimeError(f"out: another run is writing to {out}.")
            if before is not None:
                _check_same(out, before, count, settings)
            _remove_parts(out)
            _remove_parts(images)
            wanted = {"version": _VERSION, "count": count, "settings": settings}
            if wanted != before:
                content = json.dumps(wanted, indent=2) + "\n"  # ASCII: a path may be no UTF-8
                replace_file(out / SETTINGS, content.encode())
            if not alone:
                lock_file(folder._lock, block=True, shared=True)
        except BaseException:
            folder.close()
            raise
        return folder

    @staticmethod
    def begun_for(out: Path) -> int:
        """How many samples a folder was begun for; 0 if it was not.

        Raises:
            ValueError: It is a folder of something else.
        """
        before = read_settings(out)
        return before["count"] if before is not None else 0

    @staticmethod
    def changes(out: Path, settings: dict[str, Any]) -> str:
        """How these settings differ from those that a folder was begun with, in words; "" if they
        do not, or if it was not begun."""
        before = read_settings(out)
        return _changes(before["settings"], settings) if before is not None else ""

    @staticmethod
    def discard_unused(out: Path) -> None:
        """Remove a closed folder without any image: it would be in the way of other settings."""
        if next(read_index(out), None) is not None or any((out / IMAGES).glob("[!.]*")):
            return
        for name in (f"{IMAGES}/.lock", INDEX, SETTINGS, ".lock"):
            (out / name).unlink(missing_ok=True)
        with suppress(OSError):  # other files stay
            (out / IMAGES).rmdir()
            out.rmdir()

    @classmethod
    def join(cls, out: Path, count: int) -> SampleFolder:
        """The folder that another process of this run has begun."""
        folder = cls(out, count)
        lock_file(folder._lock, block=True, shared=True)
        return folder

    def close(self) -> None:
        """Let other runs write here; the end of the process does so too."""
        self._lock.close()

    def missing(self, group: int = 1) -> list[range]:
        """The samples still to be drawn, ascending; lines whose image is gone leave the index.

        Args:
            group: How many samples are drawn together; an incomplete group counts as missing.
        """
        there = {name for name in os.listdir(self.path / IMAGES) if _is_whole(self.path, name)}
        with locked(self.path):
            before = self._lines()
            kept = {
                sample: line
                for sample, (file, line) in before.items()
                if file is None or file.rpartition("/")[2] in there
            }
            if group > 1:
                whole = Counter(sample // group for sample in kept)
                kept = {n: line for n, line in kept.items() if whole[n // group] == group}
            if len(kept) < len(before):
                self._write_index(kept.values())
        gaps, first = [], 0
        for sample in sorted(kept):
            if sample > first:
                gaps.append(range(first, sample))
            first = sample + 1
        return [*gaps, range(first, self.count)] if first < self.count else gaps

    def add(
        self, samples: range, images: Sequence[Image.Image | None], rows: Sequence[dict[str, Any]]
    ) -> None:
        """Write the images of consecutive samples and their lines; all of them, or none.

        Args:
            images: None for a sample that was rejected: it gets a line and no image.

        Raises:
            OSError: The disk is full or fails. The folder is as it was.
        """
        files = [
            None if image is None else image_name(sample)
            for sample, image in zip(samples, images, strict=True)
        ]
        names = [name for name in files if name is not None]
        parts = [part_of(self.path / name) for name in names]
        try:
            with ThreadPoolExecutor(_WRITERS) as pool:
                list(pool.map(_write_png, parts, [image for image in images if image is not None]))
        except BaseException:
            for part in parts:
                part.unlink(missing_ok=True)
            raise
        for part, name in zip(parts, names, strict=True):
            os.replace(part, self.path / name)
        sync_folder(self.path / IMAGES)
        lines = [
            line_of({"sample": sample, "file": name, **row})
            for sample, name, row in zip(samples, files, rows, strict=True)
        ]
        try:
            self._append(b"".join(lines))
        except OSError:
            for name in names:
                (self.path / name).unlink(missing_ok=True)
            raise

    def finish(self) -> bool:
        """Sort the index if it is complete. Returns whether it is and no other process writes here.

        Each process of a run calls it at its end; the last one finds all samples.
        """
        with locked(self.path):
            # If this fails, it gives up the shared lock, so that the next process finds one holder
            # fewer.
            alone = lock_file(self._lock, block=False)
            lines = self._lines()
            if len(lines) != self.count:
                return False
            if list(lines) != sorted(lines):
                self._write_index(lines[sample][1] for sample in range(self.count))
        return alone

    def _lines(self) -> dict[int, tuple[str | None, bytes]]:
        """File and line of each sample in the index, in the order of the lines."""
        return {
            row["sample"]: (row["file"], line)
            for row, line in lines_of(self.path / INDEX)
            if 0 <= row["sample"] < self.count
        }

    def _append(self, content: bytes) -> None:
        index = self.path / INDEX
        open_untrusted(index, "ab").close()
        with locked(self.path), open_untrusted(index, "rb+", buffering=0) as opened:
            file = cast("FileIO", opened)
            size = end_of_lines(file)
            try:
                file.truncate(size)
                file.seek(size)
                write_all(file, content)
                sync_file(file)
            except OSError:
                file.truncate(size)
                raise

    def _write_index(self, lines: Iterable[bytes]) -> None:
        replace_file(self.path / INDEX, b"".join(lines))


def _is_whole(folder: Path, name: str) -> bool:
    """Whether an image's file is complete."""
    if not name.endswith(".png"):
        return False
    with open_untrusted(folder / IMAGES / name, inside=folder) as file:
        begin = file.read(len(_PNG_BEGIN))
        if file.seek(0, os.SEEK_END) < len(_PNG_BEGIN) + len(_PNG_END):
            return False
        file.seek(-len(_PNG_END), os.SEEK_END)
        return begin == _PNG_BEGIN and file.read() == _PNG_END


def _write_png(part: Path, image: Image.Image) -> None:
    png = io.BytesIO()
    image.save(png, format="PNG")
    with part.open("xb", buffering=0) as file:
        write_all(file, png.getvalue())
        sync_file(file)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def read_settings(out: Path) -> dict[str, Any] | None:
    """What settings.json of a folder of samples says: `version`, `count` and `settings`; None
    without the file.

    Raises:
        ValueError: The file is of something else, or of another version.
    """
    try:
        values = read_object(out / SETTINGS)
    except FileNotFoundError:
        return None
    if type(values.get("count")) is not int or not isinstance(values.get("settings"), dict):
        raise ValueError(f"{printable(out / SETTINGS)} is not of a folder of samples.")
    if values.get("version") != _VERSION:
        raise ValueError(
            f"{printable(out / SETTINGS)} has version "
            f"{short(repr(values.get('version')))}, this package reads {_VERSION}."
        )
    return values


def _check_same(out: Path, before: dict[str, Any], count: int, settings: dict[str, Any]) -> None:
    if count < before["count"]:
        raise ValueError(
            f"count: {out} was begun for {before['count']} samples, got {count}; more can be "
            "added, but none removed."
        )
    if changes := _changes(before["settings"], settings):
        raise ValueError(
            f"resume: {out} was begun with other settings ({changes}). Give those, or name "
            "another folder."
        )


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    return "; ".join(
        f"{short(n)}: {short(repr(before.get(n)))} there, {short(repr(now.get(n)))} now"
        for n in {**before, **now}
        if before.get(n) != now.get(n)
    )


_NAMED = 6  # unknown classes that a message names


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
