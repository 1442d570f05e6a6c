"""Damage to files: changed bytes, numbers and JSON values, and other things in a file's place."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

__all__ = ["damage", "write_files"]

_INTEGERS = (0, 1, -1, 2, 7, 127, 255, 256, 512, 65535, 2**16, 2**20, 2**24, 2**31 - 1, 2**31)
_LARGE = (2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**400)
_TEXTS = (
    "",
    ".",
    "..",
    "../secret",
    "../../secret",
    "/etc/passwd",
    "{secret}",
    "a/b",
    "x\0y",
    "\x1b[2J\x07",
    "\ud800",
    "\u202e",
    "x" * 3000,
    "x" * 10**6,
    "https://127.0.0.1:9/x",
    "pipe:id",
)
_OBJECTS: tuple[Any, ...] = (None, True, False, 0.5, -0.0, 1e308, [], {}, [[]], {"a": 1}, "NaN")
_PLACES = ("missing", "empty", "link", "loop", "fifo", "folder", "huge")


def damage(random: Random, files: dict[str, bytes]) -> dict[str, bytes | str]:
    """The files with one to three kinds of damage. A string names what stands in a file's place."""
    result: dict[str, bytes | str] = dict(files)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        name = random.choice(sorted(result))
        content = result[name]
        if isinstance(content, str) or random.random() < 0.04:
            result[name] = random.choice(_PLACES)
        elif name.endswith((".json", ".jsonl")) and random.random() < 0.7:
            result[name] = _damaged_json(random, content)
        else:
            other = files[random.choice(sorted(files))]
            result[name] = _damaged_bytes(random, content, other)
    return result


def write_files(folder: Path, files: dict[str, bytes | str], secret: Path) -> None:
    """Writes the files into the folder, or puts in their place what the strings name."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content.replace(b"{secret}", os.fsencode(secret)))
        elif content == "empty":
            path.touch()
        elif content == "link":
            path.symlink_to(secret)
        elif content == "loop":
            path.symlink_to(path.name)
        elif content == "fifo":
            os.mkfifo(path)
        elif content == "folder":
            path.mkdir()
        elif content == "huge":
            path.touch()
            os.truncate(path, 2**40)


def _damaged_bytes(random: Random, content: bytes, other: bytes) -> bytes:
    data = bytearray(content)
    at = random.randrange(len(data) + 1)
    # Headers are short and decide most, so half of all damage is done there.
    if random.random() < 0.5:
        at = min(at, random.randrange(600))
    span = random.choice((1, 2, 4, 8, 16, 64, 512))
    kind = random.randrange(9)
    if kind == 0:
        for _ in range(random.choice((1, 2, 8))):
            if data:
                data[random.randrange(len(data))] = random.randrange(256)
    elif kind == 1:
        size = random.choice((1, 2, 4, 8))
        value = random.choice(_INTEGERS + _LARGE) % 2 ** (8 * size)
        data[at : at + size] = value.to_bytes(size, random.choice(("little", "big")))
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + span]
    elif kind == 4:
        data[at:at] = data[at : at + span] * random.choice((1, 2, 50))
    elif kind == 5:
        data[at:at] = bytes(span) if random.random() < 0.5 else random.randbytes(span)
    elif kind == 6:
        start = random.randrange(len(other) + 1)
        data[at : at + span] = other[start : start + span]
    elif kind == 7:
        _replace(random, data, rb"\d+", str(random.choice(_INTEGERS + _LARGE[:-1])).encode())
    else:
        text = random.choice(_TEXTS).encode("utf-8", "surrogatepass")
        _replace(random, data, rb"[A-Za-z_./-]{3,}", text)
    return bytes(data)


def _replace(random: Random, data: bytearray, pattern: bytes, value: bytes) -> None:
    found = list(re.finditer(pattern, data))
    if found:
        match = random.choice(found)
        data[match.start() : match.end()] = value


def _damaged_json(random: Random, content: bytes) -> bytes:
    lines = content.splitlines() if content.count(b"\n") > 1 else [content]
    which = random.randrange(len(lines))
    try:
        value = json.loads(lines[which])
    except ValueError:
        try:
            lines, which = [content], 0
            value = json.loads(content)
        except ValueError:
            return _damaged_bytes(random, content, content)
    root = [value]
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], (dict, list)) and holder[key] and random.random() < 0.8:
        holder = holder[key]
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    choice = random.randrange(5)
    if choice == 0:
        holder[key] = random.choice(_OBJECTS)
    elif choice == 1:
        holder[key] = random.choice(_TEXTS)
    elif choice == 2 and isinstance(holder, dict):
        del holder[key]
    elif choice == 3 and isinstance(holder, list):
        holder.insert(key, holder[random.randrange(len(holder))])
    else:
        holder[key] = random.choice(_INTEGERS + _LARGE)
    lines[which] = json.dumps(root[0]).encode() if root else b""
    return b"\n".join(lines)
