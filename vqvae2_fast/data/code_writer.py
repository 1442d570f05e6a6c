"""Writing code stores: shard by shard, by any number of processes, continuing after a stop.

Each process writes a shard to a hidden file of its own. When the shard is full, the process takes
the store's lock, renames the file, and replaces the manifest by one that names it. The disk is
synced in this order, so that at every moment the manifest names only whole shards, and a killed
process leaves a hidden file that the next writer removes. If two processes write the same records,
the second one's shard is refused.
"""

from __future__ import annotations

import re
import time
import zlib
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.data.batches import check_rank
from vqvae2_fast.data.code_format import (
    MANIFEST,
    CodeLayout,
    Manifest,
    Shard,
    checked_codes,
    read_manifest,
    write_manifest,
)
from vqvae2_fast.data.images import check_class_names, check_labels
from vqvae2_fast.files.durable import (
    create_part,
    explained,
    locked,
    remove_dead_parts,
    rename_synced,
    sync_file,
    write_all,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from io import FileIO
    from types import TracebackType

__all__ = ["CodeWriter", "WriteProgress", "share", "write_codes"]

SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 60.0  # the most work that a crash may cost


class CodeWriter:
    """Writes records into a store, making the store if there is none; use it in a `with`.

    Several writers, in any processes of machines that share the disk, may write to one store as
    long as their records differ. A block that ends by an exception leaves all full shards, but the
    records of the unfinished one are lost.

    Args:
        path: The store's folder.
        num_embeddings: K; every code is in [0, K).
        level_sizes: (height, width) of each map, coarse to fine.
        class_names: One name for each class, in the order of labels; empty without classes.
        checkpoint_hash: Identifies the model that makes the codes, or "".
        source_records: Records that the store holds once it is complete, if known.
        first: The record that the first call of `add` begins with; without it the one after the
            last that the store holds.
        shard_bytes: A shard is closed when it reaches this size.
        shard_seconds: A shard is also closed this long after it was begun.

    Raises:
        ValueError: The folder holds a store of another set, model or class list (both are named),
            a damaged store, or sizes are out of range.
    """

    on_failure = (
        "The store is what it was before the unfinished shard",
        "continue with the same images and settings",
    )
    """What an error of the disk leaves, and what to do then. A caller that cannot continue sets
    its own."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        num_embeddings: int,
        level_sizes: Sequence[tuple[int, int]],
        *,
        class_names: Sequence[str] = (),
        checkpoint_hash: str = "",
        source_records: int | None = None,
        first: int | None = None,
        shard_bytes: int = SHARD_BYTES,
        shard_seconds: float = SHARD_SECONDS,
    ) -> None:
        self.folder = Path(path)
        sizes = tuple((int(height), int(width)) for height, width in level_sizes)
        self._layout = CodeLayout(num_embeddings, sizes)
        if self._layout.problem():
            raise ValueError(f"{self._layout.problem()}.")
        check_class_names(class_names)
        empty = Manifest(self._layout, tuple(class_names), checkpoint_hash, source_records)
        manifest = _open_or_create(self.folder, empty)
        self._empty = empty
        self._num_classes = len(class_names)
        self._first = manifest.missing(0, 2**62)[-1][0] if first is None else first
        self._shard_records = max(1, shard_bytes // self._layout.record_bytes)
        self._shard_seconds = shard_seconds
        self._part: _Part | None = None

    @property
    def position(self) -> int:
        """The record that the next call of `add` begins with."""
        return self._first + (self._part.records if self._part else 0)

    def seek(self, first: int) -> None:
        """Closes the shard; the next call of `add` begins with record `first`."""
        self.flush()
        self._first = first

    def add(self, codes: list[Tensor], labels: Tensor | None = None) -> None:
        """Appends maps `[n, h, w]`, coarse to fine, of any integer type, and labels int64 `[n]`.

        Raises:
            TypeError: codes are not integers or labels not int64.
            ValueError: Shapes or values that do not fit; records beyond source_records, or that
                the store holds already.
            OSError: The disk is full or fails; the store is then as it was, without this shard.
        """
        codes = [maps.detach().to("cpu") for maps in codes]
        count = len(codes[0]) if codes else 0
        checked_codes(codes, count, self._layout.num_embeddings)
        sizes = tuple((maps.shape[1], maps.shape[2]) for maps in codes)
        if sizes != self._layout.level_sizes:
            found = CodeLayout(self._layout.num_embeddings, sizes)
            raise ValueError(f"expected maps of {self._layout.describe()}, got {found.describe()}.")
        if labels is None:
            labels = torch.full((count,), -1, dtype=torch.int64, device="cpu")
        labels = labels.to("cpu")
        check_labels(labels, count, self._num_classes)
        start, source = self.position, self._empty.source_records
        if source is not None and start + count > source:
            raise ValueError(
                f"records {start} to {start + count - 1} go beyond the "
                f"source_records={source} of {self.folder}."
            )
        done = 0
        while done < count:
            part = self._part or self._begin()
            take = slice(done, done + self._shard_records - part.records)
            content = self._layout.pack([maps[take] for maps in codes], labels[take])
            with self._explained():
                part.write(content.tobytes(), len(content))
            done += len(content)
            old = time.monotonic() - part.begun >= self._shard_seconds
            if old or part.records == self._shard_records:
                self.flush()

    def flush(self) -> None:
        """Closes the shard, whose records count from now on."""
        part = self._part
        if part is None:
            return
        with self._explained():
            sync_file(part.file)
            with locked(self.folder):
                self._commit(part)
        self._first += part.records
        self._part = None
        part.file.close()

    def discard(self) -> None:
        """Drops the records of the unfinished shard."""
        if self._part is not None:
            self._part.file.close()
            self._part.path.unlink(missing_ok=True)
            self._part = None

    def __enter__(self) -> CodeWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.flush()
        else:
            self.discard()

    def _begin(self) -> _Part:
        name = f"shard-{self._first:012d}.bin"
        with self._explained(), locked(self.folder):
            file, path = create_part(self.folder, name)
        self._part = _Part(file, path, name, time.monotonic())
        return self._part

    def _commit(self, part: _Part) -> None:
        manifest = read_manifest(self.folder)
        _check_same(self.folder, manifest, self._empty)
        shard = Shard(part.name, self._first, part.records, part.crc32)
        for other in manifest.shards:
            if other.first < shard.stop and shard.first < other.stop:
                raise ValueError(
                    f"{self.folder} holds records {other.first} to {other.stop - 1} "
                    f"already ({other.name}), records {shard.first} to {shard.stop - 1} would be "
                    "written twice; give each process a share of its own."
                )
        shards = tuple(sorted((*manifest.shards, shard), key=lambda shard: shard.first))
        write_manifest(
            self.folder,
            replace(manifest, shards=shards),
            before=lambda: rename_synced(part.path, self.folder / part.name),
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Drops the unfinished shard on an error, and explains an error of the disk."""
        try:
            with explained(f"cannot write to {self.folder}", *self.on_failure):
                yield
        except BaseException:
            self.discard()
            raise


@dataclass
class _Part:
    """An unfinished shard."""

    file: FileIO
    path: Path
    name: str
    begun: float
    records: int = 0
    crc32: int = 0

    def write(self, content: bytes, records: int) -> None:
        write_all(self.file, content)
        self.crc32 = zlib.crc32(content, self.crc32)
        self.records += records


@dataclass(frozen=True)
class WriteProgress:
    """How far `write_codes` has come with the share of this process.

    Args:
        done: Records of the share that are written, including those of earlier calls.
        total: Records of the share.
        records_per_second: The rate of this call so far.
        seconds_left: The time left at that rate.
    """

    done: int
    total: int
    records_per_second: float
    seconds_left: float


def write_codes(
    path: str | os.PathLike[str],
    encode: Callable[[int, int], Iterable[tuple[list[Tensor], Tensor]]],
    source_records: int,
    num_embeddings: int,
    level_sizes: Sequence[tuple[int, int]],
    *,
    class_names: Sequence[str] = (),
    checkpoint_hash: str = "",
    rank: int = 0,
    world_size: int = 1,
    shard_bytes: int = SHARD_BYTES,
    shard_seconds: float = SHARD_SECONDS,
    progress: Callable[[WriteProgress], None] | None = None,
) -> None:
    """Writes all records that a store lacks, making the store if there is none.

    Each of `world_size` processes calls this with its rank and writes its share; a later call may
    have another number of processes. The store is complete when all have returned.

    Args:
        encode: Gives, for records first to stop - 1 of the set, batches of their codes and labels
            in order, as `CodeWriter.add` takes them. Called once for each range that is missing.
        progress: Called after each batch.

    Raises:
        ValueError: `encode` gives another number of records than asked for; and as `CodeWriter`.
    """
    start, stop = share(source_records, rank, world_size)
    with CodeWriter(
        path,
        num_embeddings,
        level_sizes,
        class_names=class_names,
        checkpoint_hash=checkpoint_hash,
        source_records=source_records,
        first=start,
        shard_bytes=shard_bytes,
        shard_seconds=shard_seconds,
    ) as writer:
        ranges = read_manifest(writer.folder).missing(start, stop)
        left = sum(last - first for first, last in ranges)
        written, begun = 0, time.monotonic()
        for first, last in ranges:
            writer.seek(first)
            for codes, labels in encode(first, last):
                if writer.position + len(labels) > last:
                    raise _wrong_count(first, last, writer.position + len(labels) - first)
                writer.add(codes, labels)
                written += len(labels)
                if progress is not None:
                    rate = max(written, 1) / max(time.monotonic() - begun, 1e-9)
                    done = stop - start - left + written
                    progress(WriteProgress(done, stop - start, rate, (left - written) / rate))
            if writer.position != last:
                raise _wrong_count(first, last, writer.position - first)
    with locked(writer.folder):
        _remove_orphans(writer.folder, read_manifest(writer.folder))


def share(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """The range (start, stop) of `total` records that this process writes.

    Raises:
        ValueError: rank is not in [0, world_size).
    """
    check_rank(rank, world_size)
    return total * rank // world_size, total * (rank + 1) // world_size


def _wrong_count(first: int, last: int, found: int) -> ValueError:
    return ValueError(f"encode({first}, {last}) must give {last - first} records, gave {found}.")


def _open_or_create(folder: Path, empty: Manifest) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        remove_dead_parts(folder)
        if not (folder / MANIFEST).exists():
            write_manifest(folder, empty)
        manifest = read_manifest(folder)
    _check_same(folder, manifest, empty)
    return manifest


def _remove_orphans(folder: Path, manifest: Manifest) -> None:
    """Removes shards that a writer killed before the manifest named them; the lock is held.

    Only those are removed whose first record the store holds by now. If somebody restored an older
    manifest, the others may be the only copy; the next writer of their records replaces them.
    """
    named = {shard.name for shard in manifest.shards}
    starts = [shard.first for shard in manifest.shards]
    for path in folder.glob("shard-*.bin"):
        number = path.name[len("shard-") : -len(".bin")]
        if path.name in named or not re.fullmatch("[0-9]{12}", number):
            continue
        before = bisect_right(starts, int(number)) - 1
        if before >= 0 and int(number) < manifest.shards[before].stop:
            path.unlink(missing_ok=True)


def _check_same(folder: Path, found: Manifest, wanted: Manifest) -> None:
    difference = found.difference(wanted)
    if difference:
        raise ValueError(
            f"the store at {folder} has {difference}; remove it or choose another folder."
        )
