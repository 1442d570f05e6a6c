"""manifest.json of a code store: what it holds, how it is checked, and how it is replaced.

A store is a folder with manifest.json and shards. A shard is records of one fixed length
(code_layout.py), and holds those of one range of the set that was encoded: its records are
`first`, `first + 1`, ... of that set. Shards are listed in this order and never overlap, so that
the content of a store does not depend on who wrote it or how often they were interrupted. A shard
counts once the manifest names it.

The manifest is parsed by hand: msgspec or cattrs would check its types, which is a fifth of the
checks below, for one more compiled dependency.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NoReturn

from vqvae2_fast.data.code_layout import CodeLayout
from vqvae2_fast.data.images import check_class_names
from vqvae2_fast.files.durable import replace_file
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import check_regular, read_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "MANIFEST",
    "REPAIR",
    "Manifest",
    "Shard",
    "check_shard_file",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]

MANIFEST = "manifest.json"
VERSION = 1
REPAIR = "vqvae2_fast.data.discard_damaged removes such shards, then extract again"
# Parsed JSON takes some 20 times its size. 8 MiB name 90,000 shards, which hold 5 TB if full.
MAX_MANIFEST_BYTES = 8 * 2**20
_MAX_COUNT = 2**53  # of records, bytes, ...: the integers that every JSON reader holds exactly
_SHARD_FIELDS = {"name", "first", "records", "crc32"}


@dataclass(frozen=True)
class Shard:
    """Records first, first + 1, ... of the encoded set, in one file; crc32 is that of its bytes."""

    name: str
    first: int
    records: int
    crc32: int

    @property
    def stop(self) -> int:
        return self.first + self.records


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Args:
        layout: The layout of every record.
        class_names: One name per class, in the order of labels.
        checkpoint_hash: Identifies the model that made the codes, or "".
        source_records: Records of the whole set; None if that is not known.
        shards: In the order of `first`.
    """

    layout: CodeLayout
    class_names: tuple[str, ...] = ()
    checkpoint_hash: str = ""
    source_records: int | None = None
    shards: tuple[Shard, ...] = ()

    @property
    def records(self) -> int:
        return sum(shard.records for shard in self.shards)

    def missing(self, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Ranges (first, stop) of records in [start, stop) that no shard holds.

        Without `stop`, up to source_records, or to the last record that is there.
        """
        if stop is None:
            stop = self.source_records
        if stop is None:
            stop = self.shards[-1].stop if self.shards else start
        gaps = []
        for shard in self.shards:
            if shard.first > start:
                gaps.append((start, min(shard.first, stop)))
            start = max(start, shard.stop)
            if start >= stop:
                return gaps
        if start < stop:
            gaps.append((start, stop))
        return gaps

    def difference(self, other: Manifest) -> str:
        """How the sets that two stores describe differ, apart from shards; "" if they do not."""
        for name in ("layout", "class_names", "checkpoint_hash", "source_records"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                if name == "layout":
                    return f"{mine.describe()}, not {theirs.describe()}"
                return f"{name} {mine!r}, not {theirs!r}"
        return ""


def write_manifest(
    folder: Path, manifest: Manifest, before: Callable[[], None] | None = None
) -> None:
    """Replaces the manifest; `before` has to sync every shard that it names to the disk.

    Raises:
        ValueError: There are too many shards for any reader to accept the manifest.
    """
    replace_file(folder / MANIFEST, render_manifest(folder, manifest), before)


def render_manifest(folder: Path, manifest: Manifest) -> bytes:
    """The bytes of manifest.json."""
    text = json.dumps(
        {
            "kind": "code_store",
            "version": VERSION,
            "num_embeddings": manifest.layout.num_embeddings,
            "level_sizes": manifest.layout.level_sizes,
            "bits": manifest.layout.bits,
            "class_names": manifest.class_names,
            "checkpoint_hash": manifest.checkpoint_hash,
            "source_records": manifest.source_records,
            "records": manifest.records,
            "shards": [asdict(shard) for shard in manifest.shards],
        },
        indent=1,
    ).encode("utf-8")
    if len(text) > MAX_MANIFEST_BYTES:
        raise ValueError(
            f"the manifest of {folder} would exceed {MAX_MANIFEST_BYTES} bytes with "
            f"{len(manifest.shards)} shards; use larger ones (shard_bytes)."
        )
    return text


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in `folder`, every field checked; shards are not looked at.

    Raises:
        ValueError: No store there, a newer version, or a damaged manifest.
    """
    path = folder / MANIFEST
    try:
        content = read_untrusted(path, MAX_MANIFEST_BYTES, inside=folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"no code store at {printable(folder)}: {printable(path)} is missing."
        ) from error
    return parse_manifest(content, path)


def parse_manifest(content: bytes, path: Path | str = MANIFEST) -> Manifest:
    """The manifest that the bytes of manifest.json are; see `read_manifest`."""
    shown = printable(path)

    def damaged(what: str) -> NoReturn:
        raise ValueError(f"{shown} is damaged: {what}.")

    def require(ok: bool, what: str) -> None:
        if not ok:
            damaged(what)

    if len(content) > MAX_MANIFEST_BYTES:
        damaged(f"larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        raw = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown} is damaged: not JSON ({short(error)}).") from error
    require(isinstance(raw, dict) and raw.get("kind") == "code_store", "kind is not code_store")
    version = raw.get("version")
    require(_count(version, 1), f"version is {_show(version)}")
    if version > VERSION:
        raise ValueError(
            f"{shown} has version {version}, this release reads up to {VERSION}; "
            "install a newer vqvae2_fast."
        )
    k = raw.get("num_embeddings")
    require(_count(k, 1), f"num_embeddings is {_show(k)}")
    sizes = raw.get("level_sizes")
    require(
        isinstance(sizes, list)
        and len(sizes) > 0
        and all(
            isinstance(s, list) and len(s) == 2 and all(_count(n, 1) for n in s) for s in sizes
        ),
        "level_sizes must be pairs of height and width",
    )
    layout = CodeLayout(k, tuple((height, width) for height, width in sizes))
    require(not layout.problem(), layout.problem())
    bits = raw.get("bits")
    require(
        type(bits) is int and bits == layout.bits,
        f"bits is {_show(bits)}, num_embeddings {k} needs {layout.bits}",
    )
    names, digest = raw.get("class_names"), raw.get("checkpoint_hash")
    require(isinstance(names, list) and all(map(_text, names)), "class_names must be strings")
    check_class_names(names)
    require(_text(digest), "checkpoint_hash must be a string")
    source = raw.get("source_records")
    require(source is None or _count(source, 0), f"source_records is {_show(source)}")
    entries = raw.get("shards")
    require(isinstance(entries, list), "shards must be a list")
    shards: list[Shard] = []
    seen: set[str] = set()
    for entry in entries:
        # Stores that were written before `first` existed hold every record, in the order of the
        # list.
        require(
            isinstance(entry, dict) and set(entry) | {"first"} == _SHARD_FIELDS,
            "a shard needs name, first, records and crc32",
        )
        stop = shards[-1].stop if shards else 0
        name, first = entry["name"], entry.get("first", stop)
        plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name)
        require(bool(plain), f"shard name {_show(name)} is not a plain file name")
        require(name not in seen, f"a shard is named twice ({name})")
        seen.add(name)
        require(_count(first, 0), f"shard {name} has first {_show(first)}")
        count, crc32 = entry["records"], entry["crc32"]
        require(_count(count, 1), f"shard {name} has records {_show(count)}")
        require(_count(crc32, 0) and crc32 < 2**32, f"shard {name} has crc32 {_show(crc32)}")
        require(
            first >= stop,
            f"shard {name} begins at record {first}, where the one before it ends at {stop}",
        )
        shards.append(Shard(name, first, count, crc32))
        require(
            source is None or shards[-1].stop <= source,
            f"shard {name} ends at record {shards[-1].stop} of {source}",
        )
    total = sum(shard.records for shard in shards)
    require(
        type(raw.get("records")) is int and raw["records"] == total,
        f"records is {_show(raw.get('records'))}, shards hold {total}",
    )
    return Manifest(layout, tuple(names), digest, source, tuple(shards))


def check_shard_file(folder: Path, layout: CodeLayout, shard: Shard) -> Path:
    """The shard's path, if there is a regular file of the right size.

    Raises:
        ValueError: If not.
    """
    path = folder / shard.name
    try:
        status = check_regular(path, links=False)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"shard {printable(path)} is missing or not a regular file; {REPAIR}."
        ) from error
    expected = shard.records * layout.record_bytes
    if status.st_size != expected:
        raise ValueError(
            f"shard {printable(path)} has {status.st_size} bytes, expected {expected} "
            f"({shard.records} records of {layout.record_bytes}); it was cut or replaced: {REPAIR}."
        )
    return path


def _count(value: object, least: int) -> bool:
    return type(value) is int and least <= value <= _MAX_COUNT


def _text(value: object) -> bool:
    """Whether the value is a string that can be printed: JSON can hold half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _show(value: object) -> str:
    """The value for a message, shortened because it may be megabytes long."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) > _MAX_COUNT:
        return f"a number of {value.bit_length()} bits"
    return ascii(value[:60] if isinstance(value, str) else value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
