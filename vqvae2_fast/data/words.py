"""Words: what an image has beside its class, such as "glasses=variant01", as a prior is told it.

`words_of_parts` makes them of the attributes of images. A code store keeps them in words.json.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.console.words import did_you_mean
from vqvae2_fast.files.durable import locked, replace_file
from vqvae2_fast.files.json_file import damaged, json_field, read_object
from vqvae2_fast.files.kinds import TEXT, Kind, integer, list_of
from vqvae2_fast.files.printable import short

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from vqvae2_fast.data.code_store import CodeStore

__all__ = ["ANY", "NONE", "keep_words", "part_of", "words_of_codes", "words_of_parts"]

ANY, NONE = "any", "none"
_FILE = "words.json"
_MAX_BYTES = 32 * 2**20  # of the words of three million images, at eleven bytes each
_NUMBERS = Kind(
    "lists of integers >= 0",
    lambda rows: (
        isinstance(rows, list)
        and all(isinstance(row, list) and all(map(integer(0).fits, row)) for row in rows)
    ),
)

Words = tuple[tuple[str, ...], "Tensor"]


def words_of_parts(attributes: Sequence[Mapping[str, str]], parts: Iterable[str]) -> Words:
    """The words of images: "part=value" for these of their parts, in alphabetical order.

    An image may lack a part: either it says so, by the value "none", or it is of a kind that has no
    such part, and then has no word of it. Where some images say so, the others have "part=any" too.

    Returns:
        The words, and their numbers for each image, int64 `[N, W]`, -1 for none.

    Raises:
        ValueError: No image has such a part.
    """
    parts = tuple(dict.fromkeys(parts))
    known = sorted({part for values in attributes for part in values})
    for part in parts:
        if part not in known:
            raise ValueError(
                f"words: expected parts of the images ({short(', '.join(known), 600)}), got "
                f"{short(part)}.{did_you_mean(part, known)}"
            )
    may_lack = {part for part in parts if any(v.get(part) == NONE for v in attributes)}
    rows = []
    for values in attributes:
        own = [(part, values[part]) for part in parts if part in values]
        rows.append([f"{part}={value}" for part, value in own])
        rows[-1] += [f"{part}={ANY}" for part, v in own if part in may_lack and v != NONE]
    names = tuple(sorted({name for row in rows for name in row}))
    numbers = {name: number for number, name in enumerate(names)}
    return names, _table([[numbers[name] for name in row] for row in rows])


def part_of(word: str) -> str:
    """What a word is about: "glasses" of "glasses=variant01"."""
    return word.partition("=")[0]


def keep_words(folder: Path, words: Words) -> None:
    """Write the words of all images into a store's folder, or compare them with those there.

    Raises:
        ValueError: There are others, or they are too many for a reader.
    """
    names, table = words
    images = [[number for number in row if number >= 0] for row in table.tolist()]
    content = json.dumps({"names": names, "images": images}).encode()
    path = folder / _FILE
    if len(content) > _MAX_BYTES:
        raise ValueError(
            f"words: expected at most {_MAX_BYTES} bytes of them, got {len(content)}; name fewer "
            "parts."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not path.exists():
            replace_file(path, content)
        elif path.read_bytes() != content:
            raise ValueError(
                f"{folder} was begun with other words. Continue it with the same images and "
                "options, or name another folder."
            )


def words_of_codes(codes: CodeStore, names: Sequence[str] | None = None) -> Words:
    """The words of a store's records; no names and `[N, 0]` if it has none.

    Args:
        names: Count words by their places in this list, and leave out others.

    Raises:
        ValueError: The file of words is damaged, or fits another set.
    """
    path = codes.folder / _FILE
    try:
        found = read_object(path, inside=codes.folder, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return (), torch.zeros(len(codes), 0, dtype=torch.int64, device="cpu")
    own = json_field(found, "names", list_of(TEXT), path)
    rows = json_field(found, "images", _NUMBERS, path)
    total = codes.manifest.source_records or 0
    if len(set(own)) < len(own) or max((n for row in rows for n in row), default=-1) >= len(own):
        raise damaged(path, "expected different names, and numbers below theirs")
    if not rows or total % len(rows):
        raise damaged(
            path, f"it has the words of {len(rows)} images, and there are {total} records"
        )
    table = _table(rows)[
        codes.positions % len(rows)
    ]  # records are ordered by variant, then by image
    if names is None or tuple(names) == tuple(own):
        return tuple(own), table
    places = {name: place for place, name in enumerate(names)}
    renumbered = [*(places.get(name, -1) for name in own), -1]  # -1 stays
    return tuple(names), torch.tensor(renumbered, dtype=torch.int64, device="cpu")[table]


def _table(rows: Sequence[Sequence[int]]) -> Tensor:
    """int64 `[N, W]` of the longest row, the others filled up with -1."""
    width = max(map(len, rows), default=0)
    filled = [[*row, *[-1] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.int64, device="cpu").view(len(rows), width)
