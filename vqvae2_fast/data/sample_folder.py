"""A folder of drawn images with an index, whole at every moment: what a killed run leaves goes on.

images/00000.png ...   one file a sample, under its number
samples.jsonl          one line a sample: `sample`, `file`, and what its writer says of it; `file`
                       is null for one that was drawn and rejected
settings.json          how the samples are drawn, and how many there are to be

A file gets its name when its bytes are on the disk, a line is added when its file has its name.
So each line has its whole image; images without a line are of a batch that was cut off, and are
drawn again. When all samples are there the lines are sorted.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vqvae2_fast.files.durable import (
    lock_file,
    locked,
    replace_file,
    sync_file,
    sync_folder,
    write_all,
)
from vqvae2_fast.files.json_file import read_object, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    from PIL.Image import Image

__all__ = ["SampleFolder", "image_name", "read_index"]

_IMAGES, _INDEX, _SETTINGS = "images", "samples.jsonl", "settings.json"
_VERSION = 1
_WRITERS = 4  # threads that wait for the disk at a time: half the time of one, eight are no faster


def image_name(sample: int) -> str:
    """Path of a sample's image in the folder."""
    return f"{_IMAGES}/{sample:05d}.png"


def read_index(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a folder as its index has them, in the order of its lines.

    A run that is going on adds lines in the order in which batches finish; sorted at its end.

    Raises:
        ValueError: A line that is no JSON object with a sample's number. (A last line without its
            end was cut off while it was written: it is left out.)
    """
    return (row for row, _ in _lines_of(path / _INDEX))


class SampleFolder:
    """A folder that this process writes samples to, with others of its run or alone.

    Made by `begin` in one process of a run, which finds what is missing, then by `join` in the
    others. A folder takes one run at a time, until it is closed.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self._lock = (path / _IMAGES / ".lock").open("ab")

    @classmethod
    def begin(
        cls,
        path: Path,
        count: int,
        settings: dict[str, Any],
        *,
        resume: bool = False,
        alone: bool = True,
    ) -> SampleFolder:
        """A new folder for samples 0..count-1, or with `resume` one that was begun before.

        Args:
            settings: JSON-ready, all that the images are a function of; a folder keeps to its own.
            alone: Whether no other process will `join`.

        Raises:
            ValueError: The folder holds samples and `resume` is not set; or was begun with other
                settings or for more samples; or holds images of something else.
            RuntimeError: Another run is writing to it.
        """
        before = _read_settings(path)
        if before is not None and not resume:
            raise ValueError(
                f"--out: {path} holds samples already. Add --resume to go on there, or name "
                "another folder."
            )
        images = path / _IMAGES
        if before is None and images.is_dir() and any(images.glob("[!.]*")):
            raise ValueError(f"--out: {images} holds files of something else; name another folder.")
        images.mkdir(parents=True, exist_ok=True)
        folder = cls(path, count)
        try:
            if not lock_file(folder._lock, wait=False):
                raise RuntimeError(f"--out: another run is writing to {path}.")
            if before is not None:
                _check_same(path, before, count, settings)
            _remove_parts(path)
            _remove_parts(images)
            wanted = {"version": _VERSION, "count": count, "settings": settings}
            if wanted != before:
                content = json.dumps(wanted, indent=2, ensure_ascii=False) + "\n"
                replace_file(path / _SETTINGS, content.encode())
            if not alone:
                lock_file(folder._lock, wait=True, shared=True)
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def join(cls, path: Path, count: int) -> SampleFolder:
        """The folder that another process of this run has begun."""
        folder = cls(path, count)
        lock_file(folder._lock, wait=True, shared=True)
        return folder

    def close(self) -> None:
        """Let other runs write here; the end of the process does it too."""
        self._lock.close()

    def missing(self, group: int = 1) -> list[int]:
        """Numbers of the samples still to be drawn; lines whose image is gone leave the index.

        Args:
            group: Samples that are drawn together: of a group that is not whole all are missing.
        """
        there = set(os.listdir(self.path / _IMAGES))
        with locked(self.path):
            kept = {
                row["sample"]: line
                for row, line in _lines_of(self.path / _INDEX)
                if row.get("file", "") is None
                or image_name(row["sample"]).rpartition("/")[2] in there
            }
            if group > 1:
                whole = Counter(sample // group for sample in kept)
                kept = {n: line for n, line in kept.items() if whole[n // group] == group}
            self._write_index(list(kept.values()))
        return [sample for sample in range(self.count) if sample not in kept]

    def add(
        self, samples: range, images: Sequence[Image | None], rows: Sequence[dict[str, Any]]
    ) -> None:
        """Write the images of consecutive samples and their lines; all of them, or none.

        Args:
            images: None for a sample that was rejected: it gets a line alone.

        Raises:
            OSError: The disk is full or fails. The folder is as it was.
        """
        files = [
            None if image is None else image_name(sample)
            for sample, image in zip(samples, images, strict=True)
        ]
        names = [name for name in files if name is not None]
        parts = [self._part(name) for name in names]
        try:
            with ThreadPoolExecutor(_WRITERS) as pool:
                list(pool.map(_write_png, parts, [image for image in images if image is not None]))
        except BaseException:
            for part in parts:
                part.unlink(missing_ok=True)
            raise
        for part, name in zip(parts, names, strict=True):
            os.replace(part, self.path / name)
        sync_folder(self.path / _IMAGES)
        lines = [
            _line({"sample": sample, "file": name, **row})
            for sample, name, row in zip(samples, files, rows, strict=True)
        ]
        try:
            self._append(b"".join(lines))
        except OSError:
            for name in names:
                (self.path / name).unlink(missing_ok=True)
            raise

    def finish(self) -> bool:
        """Sort the index if all samples are there; whether they are, and no other process is.

        Each process of a run calls it at its end: the last one finds all.
        """
        with locked(self.path):
            # In vain, this gives up the shared lock: the next process to come here finds one less.
            alone = lock_file(self._lock, wait=False)
            lines = {row["sample"]: line for row, line in _lines_of(self.path / _INDEX)}
            if lines.keys() != set(range(self.count)):
                return False
            self._write_index([lines[sample] for sample in range(self.count)])
        return alone

    def _part(self, name: str) -> Path:
        path = self.path / name
        return path.with_name(f".{path.name}.{uuid4().hex}.part")

    def _append(self, content: bytes) -> None:
        index = self.path / _INDEX
        index.touch()
        with locked(self.path), index.open("rb+", buffering=0) as file:
            size = _end_of_lines(file)
            try:
                file.truncate(size)
                file.seek(size)
                write_all(file, content)
                sync_file(file)
            except OSError:
                file.truncate(size)
                raise

    def _write_index(self, lines: list[bytes]) -> None:
        index, content = self.path / _INDEX, b"".join(lines)
        if content != (index.read_bytes() if index.exists() else b""):
            replace_file(index, content)


def _lines_of(index: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows of an index with their bytes, without a last one that was cut off."""
    if not index.exists():
        return
    with index.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{index}: line {number} is damaged: {short(error)}.") from error
            if not isinstance(row, dict) or type(row.get("sample")) is not int:
                raise ValueError(f"{index}: line {number} is damaged: it has no sample number.")
            yield row, line


def _end_of_lines(file: FileIO) -> int:
    """Where the last whole line ends: a writer may have been killed within the next."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
        return size
    file.seek(0)
    return file.readall().rfind(b"\n") + 1


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _write_png(part: Path, image: Image) -> None:
    png = io.BytesIO()
    image.save(png, format="PNG")
    with part.open("xb", buffering=0) as file:
        write_all(file, png.getvalue())
        sync_file(file)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        values = read_object(path / _SETTINGS)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"--out: {error}") from error
    if type(values.get("count")) is not int or not isinstance(values.get("settings"), dict):
        raise ValueError(f"--out: {path / _SETTINGS} is not of a folder of samples.")
    if values.get("version") != _VERSION:
        raise ValueError(
            f"--out: {path / _SETTINGS} has version {values.get('version')!r}, this package reads "
            f"{_VERSION}."
        )
    return values


def _check_same(path: Path, before: dict[str, Any], count: int, settings: dict[str, Any]) -> None:
    if count < before["count"]:
        raise ValueError(
            f"--n: {path} was begun for {before['count']} samples, got {count}; more can be added, "
            "none taken away."
        )
    told = before["settings"]
    names = [name for name in {**told, **settings} if told.get(name) != settings.get(name)]
    if names:
        changes = "; ".join(f"{n}: {told.get(n)!r} there, {settings.get(n)!r} now" for n in names)
        raise ValueError(
            f"--resume: {path} was begun with other settings ({changes}). Give those, or name "
            "another folder."
        )
