"""Kills writers of a code store at random moments and checks what they leave.

    python tools/kill_test_store.py [--kills 50] [--writers 2] [--records 6000] [--seed 0]

Each round starts writers of one store as processes of their own, reads the store while they write,
and ends them by SIGKILL after a random time. Then the manifest must name only whole shards with the
right records, no record that was in it may be lost, and no visible file may be half written. The
next round continues that store; a complete one is compared with the set, and a new one begun.
Prints one line per round and exits with 1 at the first failure."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from kill import kill_after

from vqvae2_fast.data import CodeStore, verify, write_codes

if TYPE_CHECKING:
    from collections.abc import Iterator

K, SIZES = 300, ((4, 4), (8, 8))
SHARD_RECORDS = 7  # small, so that many kills hit the closing of a shard
RECORD_BYTES = 18 + 72 + 4
BATCH = 5


def records(numbers: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The records of an artificial set, each a function of its number."""
    maps = [
        (numbers.view(-1, 1, 1) * 7 + torch.arange(h * w).view(1, h, w) * 11) % K for h, w in SIZES
    ]
    return maps, numbers % 3


def encode(first: int, stop: int) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    for part in torch.arange(first, stop).split(BATCH):
        yield records(part)


def write(path: Path, total: int, rank: int, writers: int) -> None:
    torch.set_num_threads(1)
    write_codes(
        path,
        encode,
        total,
        K,
        SIZES,
        class_names="abc",
        rank=rank,
        world_size=writers,
        shard_bytes=SHARD_RECORDS * RECORD_BYTES,
    )


def check(path: Path, before: set[int]) -> set[int]:
    """Returns the records of the store. Raises AssertionError unless it is sound."""
    for report in verify(path):
        assert not report.problem, report.problem
    store = CodeStore(path)
    positions = store.positions
    codes, labels = store.batch(torch.arange(len(store)))
    expected, expected_labels = records(positions)
    assert all(torch.equal(a, b) for a, b in zip(codes, expected, strict=True)), "wrong codes"
    assert torch.equal(labels, expected_labels), "wrong labels"
    held = set(positions.tolist())
    assert before <= held, f"{len(before - held)} records are gone"
    for file in path.iterdir():
        if file.name.startswith(".") or file.name == "manifest.json":
            continue
        first, size = int(file.name[6:18]), file.stat().st_size
        numbers = torch.arange(first, first + size // RECORD_BYTES)
        content = store.layout.pack(*records(numbers)).tobytes()
        assert file.read_bytes() == content, f"{file.name} is half written"
    return held


def kill_while_writing(path: Path, total: int, writers: int, seconds: float) -> tuple[int, int]:
    """Starts writers and kills them later. Returns how many died, and the reads meanwhile."""
    reads = 0

    def read() -> None:
        nonlocal reads
        if (path / "manifest.json").exists():
            store = CodeStore(path)
            store.batch(torch.arange(len(store))[-3:])
            reads += 1

    targets = [partial(write, path, total, rank, writers) for rank in range(writers)]
    return kill_after(seconds, targets, read), reads


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="rounds that end by a kill")
    parser.add_argument("--writers", type=int, default=2, help="processes that write at a time")
    parser.add_argument("--records", type=int, default=6000, help="of each store")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)
    kills = stores = orphans = unfinished = 0
    with tempfile.TemporaryDirectory() as folder:
        path, held = Path(folder) / "0", set[int]()
        while kills < arguments.kills:
            died, reads = kill_while_writing(
                path, arguments.records, arguments.writers, rng.uniform(0.0, 0.5)
            )
            kills += died > 0
            if not (path / "manifest.json").exists():
                print(f"kill {kills}: before the store was made")
                continue
            before, held = held, check(path, held)
            named = len(CodeStore(path).manifest.shards)
            orphans += len(list(path.glob("shard-*.bin"))) - named
            unfinished += len(list(path.glob(".*.part")))
            print(
                f"kill {kills}: {died} of {arguments.writers} writers killed, {len(held)} records "
                f"({len(held) - len(before)} new), {reads} reads meanwhile"
            )
            if len(held) == arguments.records:
                stores, held = stores + 1, set()
                path = Path(folder) / str(stores)
        write(path, arguments.records, 0, 1)
        assert len(check(path, held)) == arguments.records
        assert CodeStore(path).complete
        assert not list(path.glob(".*.part")), "an unfinished file is left"
        named = len(CodeStore(path).manifest.shards)
        assert len(list(path.glob("shard-*.bin"))) == named, "a shard that does not count is left"
    print(
        f"{kills} kills, {stores + 1} stores completed, no record lost. Left behind and cleared: "
        f"{unfinished} unfinished files, {orphans} whole shards that did not count yet."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
