"""Reading code stores from the disk, checking them, and comparing them with a prior.

code_format.py has what the files hold, code_writer.py the writing.
"""

from __future__ import annotations

import copy
import zlib
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2_fast.data.code_format import (
    REPAIR,
    Manifest,
    Shard,
    check_shard_file,
    read_manifest,
    write_manifest,
)
from vqvae2_fast.data.groups import names_of_prior
from vqvae2_fast.files.durable import locked
from vqvae2_fast.files.mapped import MappedFile, check_utf8
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import open_untrusted
from vqvae2_fast.models.code_checks import check_prior_fits

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from vqvae2_fast.data.code_format import CodeLayout
    from vqvae2_fast.models.prior import PriorConfig

__all__ = ["CodeStore", "ShardReport", "check_matches", "discard_damaged", "verify"]

_READ_BYTES = 2**20  # read at a time when a whole shard is read


class CodeStore(Dataset[tuple[list[Tensor], int]]):
    """A code store on the disk, read record by record; may be larger than memory.

    A store that is still being written holds the records that are there, in the order of the set;
    what is added later shows when it is opened again. Files are mapped: their sizes are checked on
    opening and before each access, their checksums by `verify`. Codes and labels that are read are
    in range, or an error is raised.

    Args:
        path: The store's folder.

    Item: maps int64 `[h, w]`, coarse to fine, and the label, -1 for none.

    Raises:
        ValueError: No store there, a newer version, a damaged manifest, a shard that is missing, no
            regular file or of the wrong size, or a path that is not UTF-8.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Path(path)
        check_utf8(self.folder)
        self.manifest = read_manifest(self.folder)
        self.layout = self.manifest.layout
        for shard in self.manifest.shards:
            check_shard_file(self.folder, self.layout, shard)
        self._stops = list(accumulate(shard.records for shard in self.manifest.shards))
        self._ends = np.array(self._stops, dtype=np.int64)
        # Where K is a power of two, every value of its bits is a code.
        self._codes_may_exceed = self.num_embeddings != 1 << self.layout.bits
        self._maps: dict[int, MappedFile] = {}
        self._labels: Tensor | None = None
        self._rows: np.ndarray | None = None  # the records of a selection, else all

    @property
    def num_embeddings(self) -> int:
        """K."""
        return self.layout.num_embeddings

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each map, coarse to fine."""
        return self.layout.level_sizes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names

    @property
    def checkpoint_hash(self) -> str:
        return self.manifest.checkpoint_hash

    @property
    def complete(self) -> bool:
        """Whether no record is missing, where the store knows how many there are."""
        return not self.manifest.missing()

    @property
    def positions(self) -> Tensor:
        """Which record of the encoded set each one is, int64 `[N]`."""
        starts = [
            torch.arange(shard.first, shard.stop, device="cpu") for shard in self.manifest.shards
        ]
        every = torch.cat(starts) if starts else torch.zeros(0, dtype=torch.int64, device="cpu")
        return every if self._rows is None else every[torch.from_numpy(self._rows)]

    @property
    def labels(self) -> Tensor:
        """int64 `[N]`, -1 where there is none; read from all shards the first time."""
        if self._labels is None:
            # Only the pages that hold these four bytes of each record are read from the disk.
            parts = [
                np.ascontiguousarray(self._shard(number)[:, -4:]).view("<i4")[:, 0]
                for number in range(len(self.manifest.shards))
            ]
            labels = np.concatenate(parts) if parts else np.zeros(0, np.int32)
            self._check_labels(labels, np.arange(len(labels)))
            self._labels = torch.from_numpy(labels.astype(np.int64))
        return self._labels if self._rows is None else self._labels[torch.from_numpy(self._rows)]

    def with_labels(self, labels: Sequence[int | str]) -> CodeStore:
        """The records of these labels, in order; by number or by name of the class.

        Raises:
            ValueError: A name or number that is not a label of the store.
        """
        wanted = []
        for label in labels:
            if label in self.class_names:
                label = self.class_names.index(str(label))
            if not isinstance(label, int) or not -1 <= label < len(self.class_names):
                raise ValueError(
                    f"no label {label!r} in {printable(self.folder)}; expected -1 "
                    f"(none), a number below {len(self.class_names)}, or one of "
                    f"{short(', '.join(self.class_names), 500)}."
                )
            wanted.append(label)
        keep = torch.isin(self.labels, torch.tensor(wanted, dtype=torch.int64, device="cpu"))
        return self.select(keep.nonzero()[:, 0])

    @property
    def is_selection(self) -> bool:
        """Whether these are records of a store that `select` has chosen."""
        return self._rows is not None

    def select(self, indices: Tensor) -> CodeStore:
        """The records of these numbers, int64 `[n]` in [0, N), in this order; some may repeat.

        Raises:
            IndexError: A number that is not one of a record.
        """
        rows = indices.numpy()
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(
                f"expected numbers of records in [0, {len(self)}), got {rows.min()} to "
                f"{rows.max()}."
            )
        view = copy.copy(self)
        view._rows = rows if self._rows is None else self._rows[rows]
        return view

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        count = len(self)
        if not -count <= index < count:
            raise self._no_index(index, index)
        row = index + count if index < 0 else index
        if self._rows is not None:
            row = int(self._rows[row])
        number = bisect_right(self._stops, row)
        start = self._stops[number - 1] if number else 0
        codes, label = self.layout.unpack_one(self._shard(number)[row - start])
        if not -1 <= label < len(self.class_names):
            raise self._damaged(row, f"label {label}")
        if self._codes_may_exceed:
            for maps in codes:
                if int(maps.max()) >= self.num_embeddings:
                    raise self._damaged(row, f"code {int(maps.max())}")
        return codes, label

    def batch(self, indices: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps of the given records, int64 `[B, h, w]` coarse to fine, and labels int64 `[B]`.

        Raises:
            IndexError: An index is outside [-N, N).
            ValueError: A code or label of the file is out of range.
        """
        return self._read(indices.numpy())

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files itself, since pickling a map would copy the file.
        return {**self.__dict__, "_maps": {}}

    def _read(self, indices: np.ndarray) -> tuple[list[Tensor], Tensor]:
        count = len(self)
        if len(indices) and not (-count <= indices.min() and indices.max() < count):
            raise self._no_index(indices.min(), indices.max())
        rows = np.where(indices < 0, indices + count, indices)
        if self._rows is not None:
            rows = self._rows[rows]
        owners = np.searchsorted(self._ends, rows, side="right")
        if len(rows) and (owners == owners[0]).all():
            records = self._take(int(owners[0]), rows)
        else:
            records = np.empty((len(rows), self.layout.record_bytes), dtype=np.uint8)
            for number in np.unique(owners):
                mine = owners == number
                records[mine] = self._take(int(number), rows[mine])
        codes, labels = self.layout.unpack(records, np.int64)
        self._check_labels(labels.numpy(), rows)
        if self._codes_may_exceed:
            for maps in codes:
                worst = maps.flatten(1).amax(1) if len(rows) else maps.new_zeros(1)
                if int(worst.max()) >= self.num_embeddings:
                    raise self._damaged(rows[int(worst.argmax())], f"code {int(worst.max())}")
        return codes, labels

    def _take(self, number: int, rows: np.ndarray) -> np.ndarray:
        start = self._ends[number] - self.manifest.shards[number].records
        return self._shard(number).take(rows - start, axis=0)

    def _shard(self, number: int) -> np.ndarray:
        """Records uint8 `[n, record_bytes]` of a shard, mapped; to be read at once."""
        shard = self.manifest.shards[number]
        if number not in self._maps:
            path = check_shard_file(self.folder, self.layout, shard)
            self._maps[number] = MappedFile(path, shard.records * self.layout.record_bytes)
        try:
            records = self._maps[number].bytes()
        except ValueError as error:
            raise ValueError(f"shard {error}") from error
        return records.numpy().reshape(shard.records, -1)  # [n, record_bytes]

    def _check_labels(self, labels: np.ndarray, rows: np.ndarray) -> None:
        bad = (labels < -1) | (labels >= len(self.class_names))
        if bad.any():
            at = int(bad.argmax())
            raise self._damaged(rows[at], f"label {labels[at]}")

    def _no_index(self, low: int, high: int) -> IndexError:
        count = len(self)
        return IndexError(f"indices must be in [{-count}, {count}), got {low} to {high}.")

    def _damaged(self, row: int, what: str) -> ValueError:
        shard = self.manifest.shards[int(np.searchsorted(self._ends, row, side="right"))]
        return ValueError(
            f"record {row} of {printable(self.folder)}, in {shard.name}, has {what}, "
            f"but there are {self.num_embeddings} codes and {len(self.class_names)} classes; the "
            f"file is damaged: {REPAIR}."
        )


@dataclass(frozen=True)
class ShardReport:
    """What `verify` found: `problem` is "" for a sound shard."""

    shard: Shard
    problem: str


def verify(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> list[ShardReport]:
    """Reads every byte of a store: sizes, checksums, and that codes and labels are in range.

    Args:
        progress: Called with the bytes read and those of all shards.

    Raises:
        ValueError: No store there, a newer version or a damaged manifest.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    total = manifest.records * manifest.layout.record_bytes
    reports = []
    done = 0
    for shard in manifest.shards:
        problem = ""
        try:
            for records in read_checked_shard(folder, manifest.layout, shard):
                problem = problem or _out_of_range(manifest, records)
                done += records.nbytes
                if progress is not None:
                    progress(done, total)
        except (ValueError, OSError) as error:
            problem = str(error)
        reports.append(ShardReport(shard, problem))
    return reports


def missing_or_cut(path: str | os.PathLike[str]) -> list[ShardReport]:
    """The shards whose files are missing or of another size than the manifest says; reads none.

    Raises as `verify`.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    reports = []
    for shard in manifest.shards:
        try:
            check_shard_file(folder, manifest.layout, shard)
        except (ValueError, OSError) as error:
            reports.append(ShardReport(shard, str(error)))
    return reports


def discard_damaged(path: str | os.PathLike[str]) -> list[ShardReport]:
    """Removes the shards that `verify` complains of from the store, and returns their reports.

    Extracting into the store again then writes only what they held. Writers wait until this is
    done. Raises as `verify`.
    """
    folder = Path(path)
    read_manifest(folder)  # no lock is left where there is no store
    with locked(folder):
        # A writer can put a new shard in the place of one that was found damaged before.
        bad = [report for report in verify(folder) if report.problem]
        names = {report.shard.name for report in bad}
        manifest = read_manifest(folder)
        kept = tuple(shard for shard in manifest.shards if shard.name not in names)
        if bad:
            write_manifest(folder, replace(manifest, shards=kept))
        for name in names:
            if not (folder / name).is_dir():
                (folder / name).unlink(missing_ok=True)
    return bad


def read_checked_shard(folder: Path, layout: CodeLayout, shard: Shard) -> Iterator[np.ndarray]:
    """The records of a shard, uint8 `[n, bytes]`, a MiB at a time.

    Raises:
        ValueError: The file is missing or of the wrong size; or, after the last records, its
            checksum is wrong.
    """
    path = check_shard_file(folder, layout, shard)
    step = max(1, _READ_BYTES // layout.record_bytes)
    crc32 = 0
    with open_untrusted(path) as file:
        for first in range(0, shard.records, step):
            count = min(step, shard.records - first)
            content = file.read(count * layout.record_bytes)
            if len(content) != count * layout.record_bytes:
                raise ValueError(f"shard {path} was cut while it was read.")
            crc32 = zlib.crc32(content, crc32)
            yield np.frombuffer(content, dtype=np.uint8).reshape(count, layout.record_bytes)
    if crc32 != shard.crc32:
        raise ValueError(
            f"shard {path} is damaged: CRC32 {crc32:08x}, the manifest says "
            f"{shard.crc32:08x}; {REPAIR}."
        )


def _out_of_range(manifest: Manifest, records: np.ndarray) -> str:
    codes, labels = manifest.layout.unpack(records)
    largest = max(int(maps.max()) for maps in codes)
    low, high = int(labels.min()), int(labels.max())
    if largest >= manifest.layout.num_embeddings:
        return f"codes up to {largest}, num_embeddings is {manifest.layout.num_embeddings}"
    if low < -1 or high >= len(manifest.class_names):
        return f"labels from {low} to {high}, there are {len(manifest.class_names)} classes"
    return ""


def check_matches(store: CodeStore, prior: PriorConfig) -> None:
    """Raises unless the store fits the prior: K, the size of its level and of the coarser ones.

    Raises:
        ValueError: They differ; the message says what the store has and what the prior expects.
    """
    check_prior_fits(
        "prior",
        prior,
        store.num_embeddings,
        store.level_sizes[: len(prior.condition_sizes) + 1],
        "Extract with the VQ-VAE that the prior is for.",
    )
    classes, expected = len(store.class_names), prior.num_classes
    parts = prior.num_subclasses
    sizes = Counter(names_of_prior(store.class_names, expected, parts))
    fits = len(sizes) == expected
    if parts:
        fits &= set(sizes.values()) == {parts}
    if expected and classes != expected and not fits:
        of_parts = f", or as many groups of {parts}" if parts else ""
        raise ValueError(
            f"{store.folder} has {classes} classes, the prior expects "
            f"{expected}{of_parts}; extract a set with those classes, or use a prior of the "
            "store's."
        )
