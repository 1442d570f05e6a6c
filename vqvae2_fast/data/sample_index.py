"""The index of a folder of samples: for each sample a line of JSON that says what is known of it.

It is not trusted: a line may name no file but that of its sample.
"""

from __future__ import annotations

import json
import os
from typing import IO, TYPE_CHECKING, Any

from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

__all__ = ["IMAGES", "INDEX", "end_of_lines", "image_name", "line_of", "lines_of", "read_index"]

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
