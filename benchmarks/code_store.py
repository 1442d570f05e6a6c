"""Compares the packed code store with LMDB and one pickled record per key, in one run, in turns.

    python benchmarks/code_store.py [--records 10000] [--rounds 7] [--folder DIR]

Records have maps of 32² and 64² codes at K = 512 and a label. The LMDB holds what the popular port
writes, pickled int64 NumPy arrays, and is opened as the port does, without read-ahead (--readahead
turns it on). Both give tensors int64. It times random single records, random batches of 32, and one
pass in order in batches of 256 (MB of int64 codes returned, and of the file read). Files are in the
page cache, unless --cold asks the system to drop them before each round. Prints median rates, and
the ratio of the rates with its 20th and 80th percentile over the rounds.
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from shared import measure

from vqvae2_fast.data import CodeStore, CodeWriter

if TYPE_CHECKING:
    from collections.abc import Callable

lmdb = measure.needed("lmdb")
K, SIZES = 512, ((32, 32), (64, 64))
CODE_BYTES = 8 * sum(h * w for h, w in SIZES)  # of a record as int64


class PickledLmdb:
    """Maps of records in an LMDB, each a pickled tuple of arrays int64 and a label."""

    def __init__(self, path: Path, records: int, readahead: bool) -> None:
        self.count = records
        self.environment = lmdb.open(str(path), map_size=2**36, readahead=readahead, lock=False)

    def write(self, first: int, maps: list[torch.Tensor], labels: torch.Tensor) -> None:
        with self.environment.begin(write=True) as transaction:
            for i in range(len(labels)):
                row = (*(level[i].numpy() for level in maps), int(labels[i]))
                transaction.put(str(first + i).encode(), pickle.dumps(row))

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int]:
        with self.environment.begin(write=False) as transaction:
            *maps, label = pickle.loads(transaction.get(str(index).encode()))
        return [torch.from_numpy(level) for level in maps], label

    def batch(self, indices: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        with self.environment.begin(write=False) as transaction:
            rows = [pickle.loads(transaction.get(str(i).encode())) for i in indices.tolist()]
        levels = zip(*(row[:-1] for row in rows), strict=True)
        return [torch.from_numpy(np.stack(level)) for level in levels], torch.tensor(
            [row[-1] for row in rows]
        )


def fill(
    folder: Path, records: int, readahead: bool
) -> tuple[dict[str, CodeStore | PickledLmdb], dict[str, float]]:
    """Writes the same records into both, in turns. Returns both stores and the seconds of each."""
    generator = torch.Generator().manual_seed(0)
    pickled = PickledLmdb(folder / "lmdb", records, readahead)
    seconds = {"store": 0.0, "lmdb": 0.0}
    with CodeWriter(folder / "store", K, SIZES, class_names=("a",)) as writer:
        for first in range(0, records, 500):
            count = min(500, records - first)
            maps = [torch.randint(0, K, (count, h, w), generator=generator) for h, w in SIZES]
            labels = torch.zeros(count, dtype=torch.int64)
            seconds["store"] += timed(lambda: writer.add(maps, labels))  # noqa: B023
            seconds["lmdb"] += timed(lambda: pickled.write(first, maps, labels))  # noqa: B023
        seconds["store"] += timed(writer.flush)
    seconds["lmdb"] += timed(lambda: pickled.environment.sync(True))
    return {"store": CodeStore(folder / "store"), "lmdb": pickled}, seconds


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def reopen(
    contenders: dict[str, CodeStore | PickledLmdb], folder: Path, records: int, readahead: bool
) -> None:
    """Opens both again, after asking the system to drop the files' pages.

    It does not drop mapped pages, so both are closed first.
    """
    pickled = contenders["lmdb"]
    contenders.clear()
    pickled.environment.close()
    gc.collect()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    contenders |= {
        "store": CodeStore(folder / "store"),
        "lmdb": PickledLmdb(folder / "lmdb", records, readahead),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=measure.count, default=10_000)
    parser.add_argument("--rounds", type=measure.count, default=7)
    parser.add_argument("--folder", type=Path, help="where to make both stores")
    parser.add_argument("--cold", action="store_true", help="drop the page cache in each round")
    parser.add_argument(
        "--readahead", action="store_true", help="let the system read ahead of LMDB"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{measure.machine('numpy', 'lmdb')}, {'cold' if options.cold else 'warm'} files")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        contenders, seconds = fill(folder, options.records, options.readahead)
        bytes_of = {
            kind: sum(path.stat().st_size for path in (folder / kind).rglob("*") if path.is_file())
            for kind in ("store", "lmdb")
        }
        for kind, size in bytes_of.items():
            print(
                f"{kind}: {size / options.records:.0f} bytes per record, written at "
                f"{options.records / seconds[kind]:.0f} records/s"
            )
        check_equal(**contenders)
        order = torch.randperm(options.records, generator=torch.Generator().manual_seed(1))[:2000]
        tasks: dict[str, tuple[Callable[[CodeStore | PickledLmdb], None], int]] = {
            "random records": (lambda s: [s[i] for i in order.tolist()], len(order)),
            "random batches of 32": (
                lambda s: [s.batch(part) for part in order.split(32)],
                len(order),
            ),
            "in order": (
                lambda s: [s.batch(p) for p in torch.arange(options.records).split(256)],
                options.records,
            ),
        }
        for task, (run, count) in tasks.items():
            compare(task, run, count, contenders, options, bytes_of, folder)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def check_equal(store: CodeStore, lmdb: PickledLmdb) -> None:
    some = torch.arange(0, lmdb.count, 97)
    (ours, labels), (theirs, their_labels) = store.batch(some), lmdb.batch(some)
    if not all(map(torch.equal, (*ours, labels), (*theirs, their_labels))):
        sys.exit("the two stores differ: no times are given")


def compare(
    task: str,
    run: Callable[[CodeStore | PickledLmdb], None],
    count: int,
    contenders: dict[str, CodeStore | PickledLmdb],
    options: argparse.Namespace,
    bytes_of: dict[str, int],
    folder: Path,
) -> None:
    times: dict[str, list[float]] = {"store": [], "lmdb": []}
    for number in range(options.rounds + 1):
        # The order is reversed in every second round, so that neither always comes after the other.
        for kind in sorted(times, reverse=bool(number % 2)):
            if options.cold:
                reopen(contenders, folder, options.records, options.readahead)
            seconds = timed(lambda: run(contenders[kind]))  # noqa: B023
            if number or options.cold:  # the first warms up
                times[kind].append(seconds)
    parts = []
    for kind, taken in times.items():
        median = statistics.median(taken)
        rate = f"{kind} {count / median:.0f} records/s"
        if task == "in order":
            rate += (
                f" ({count * CODE_BYTES / median / 1e6:.0f} MB/s of codes, "
                f"{bytes_of[kind] / median / 1e6:.0f} MB/s of file)"
            )
        parts.append(rate)
    ratios = sorted(theirs / ours for ours, theirs in zip(*times.values(), strict=True))
    low, high = ratios[int(0.2 * (len(ratios) - 1))], ratios[round(0.8 * (len(ratios) - 1))]
    print(
        f"{task}: {', '.join(parts)}; rates store / lmdb {statistics.median(ratios):.2f} "
        f"({low:.2f}-{high:.2f})"
    )


if __name__ == "__main__":
    main()
