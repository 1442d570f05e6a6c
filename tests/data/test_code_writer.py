"""Writing code stores: appending, resuming, several processes, full disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.codes import random_codes

from vqvae2_fast.data import (
    CodeStore,
    CodeWriter,
    code_store,
    discard_damaged,
    verify,
    write_codes,
)
from vqvae2_fast.data.code_writer import share
from vqvae2_fast.files.durable import lock_file

if TYPE_CHECKING:
    from pathlib import Path


K, SIZES = 300, ((2, 3), (4, 5))
RECORD_BYTES = 7 + 23 + 4  # 6 and 20 codes of 9 bits, and the label


def records(first: int, stop: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Records first to stop - 1 of an artificial set; each is a function of its number."""
    number = torch.arange(first, stop).view(-1, 1, 1)
    maps = [(number * 7 + torch.arange(h * w).view(1, h, w) * 11) % K for h, w in SIZES]
    return maps, torch.arange(first, stop) % 3


def encode(first: int, stop: int):
    for start in range(first, stop, 4):
        yield records(start, min(start + 4, stop))


def write(path: Path, total: int, per_shard: int = 10, encode=encode, **options) -> None:
    write_codes(
        path,
        encode,
        total,
        K,
        SIZES,
        class_names="abc",
        checkpoint_hash="h",
        shard_bytes=per_shard * RECORD_BYTES,
        **options,
    )


def writer(path: Path, per_shard: int = 10, **options) -> CodeWriter:
    return CodeWriter(
        path,
        K,
        SIZES,
        class_names="abc",
        checkpoint_hash="h",
        shard_bytes=per_shard * RECORD_BYTES,
        **options,
    )


def assert_holds(path: Path, ranges: list[tuple[int, int]]) -> None:
    """The store is sound and holds exactly these records."""
    store = CodeStore(path)
    expected = torch.cat([torch.arange(*r) for r in ranges] or [torch.zeros(0).long()])
    assert store.positions.tolist() == expected.tolist()
    assert not any(report.problem for report in verify(path))
    codes, labels = store.batch(torch.arange(len(store)))
    everything, all_labels = records(0, 1000)
    for maps, wanted in zip(codes, everything, strict=True):
        assert torch.equal(maps, wanted[expected])
    assert torch.equal(labels, all_labels[expected])


def parts(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir() if entry.name.endswith(".part")]


def test_a_batch_larger_than_shards_is_cut(tmp_path) -> None:
    with writer(tmp_path, per_shard=3) as out:
        out.add(*records(0, 11))
    assert [s.records for s in CodeStore(tmp_path).manifest.shards] == [3, 3, 3, 2]
    assert_holds(tmp_path, [(0, 11)])


def test_appending_goes_on_after_the_last_record(tmp_path) -> None:
    for first, stop in ((0, 7), (7, 9), (9, 30)):
        with writer(tmp_path) as out:
            assert out.position == first
            out.add(*records(first, stop))
    assert_holds(tmp_path, [(0, 30)])


def test_an_old_shard_is_closed(tmp_path) -> None:
    with writer(tmp_path, shard_seconds=0.0) as out:
        out.add(*records(0, 4))
        assert_holds(tmp_path, [(0, 4)])


def test_a_store_is_readable_while_it_is_written(tmp_path) -> None:
    with writer(tmp_path, source_records=50) as out:
        assert len(CodeStore(tmp_path)) == 0
        out.add(*records(0, 14))
        assert_holds(tmp_path, [(0, 10)])
        assert not CodeStore(tmp_path).complete
    assert_holds(tmp_path, [(0, 14)])


def test_an_exception_costs_the_unfinished_shard_alone(tmp_path) -> None:
    def broken(first, stop):
        yield records(first, first + 13)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 25, encode=broken)
    assert_holds(tmp_path, [(0, 10)])
    assert parts(tmp_path) == []
    asked = []
    write(tmp_path, 25, encode=lambda *r: asked.append(r) or encode(*r))
    assert asked == [(10, 25)]
    assert_holds(tmp_path, [(0, 25)])


def test_shares_cover_all_records_once() -> None:
    for total in (0, 1, 7, 100):
        for world in (1, 3, 8):
            ranges = [range(*share(total, rank, world)) for rank in range(world)]
            assert [i for r in ranges for i in r] == list(range(total))


def test_ranks_may_finish_in_any_order_and_number(tmp_path) -> None:
    write(tmp_path, 40, rank=2, world_size=3)
    write(tmp_path, 40, rank=0, world_size=3)
    assert_holds(tmp_path, [(0, 13), (26, 40)])
    assert CodeStore(tmp_path).manifest.missing() == [(13, 26)]
    write(tmp_path, 40, rank=1, world_size=2)
    write(tmp_path, 40, rank=0, world_size=2)
    assert CodeStore(tmp_path).complete
    assert_holds(tmp_path, [(0, 40)])


def test_processes_write_at_the_same_time(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=write, args=(tmp_path, 200, 3), kwargs={"rank": r, "world_size": 4})
        for r in range(4)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * 4
    assert_holds(tmp_path, [(0, 200)])
    assert parts(tmp_path) == []


def test_the_content_is_the_same_however_it_was_written(tmp_path) -> None:
    write(tmp_path / "once", 30)
    for rank in (1, 0):
        write(tmp_path / "twice", 30, 7, rank=rank, world_size=2)
    content = [
        b"".join(path.read_bytes() for path in sorted((tmp_path / name).glob("shard-*.bin")))
        for name in ("once", "twice")
    ]
    assert content[0] == content[1]


def test_records_written_twice_are_refused(tmp_path) -> None:
    one, two = writer(tmp_path, first=0), writer(tmp_path, first=3)
    one.add(*records(0, 5))
    two.add(*records(3, 10))
    one.flush()
    with pytest.raises(ValueError, match=r"records 3 to 9 would be written twice"):
        two.flush()
    assert_holds(tmp_path, [(0, 5)])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_embeddings": 512}, "has num_embeddings 300 and level .*, not num_embeddings 512"),
        ({"level_sizes": ((2, 3), (4, 6))}, "level sizes 2x3, 4x5, not .* level sizes 2x3, 4x6"),
        ({"class_names": ("x",)}, r"class_names \('a', 'b', 'c'\), not \('x',\)"),
        ({"checkpoint_hash": "other"}, "checkpoint_hash 'h', not 'other'"),
        ({"source_records": 26}, "source_records 25, not 26"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_set_or_model_is_refused_by_both_values(tmp_path, change, text) -> None:
    write(tmp_path, 25)
    same = {
        "num_embeddings": K,
        "level_sizes": SIZES,
        "class_names": "abc",
        "checkpoint_hash": "h",
        "source_records": 25,
    }
    with pytest.raises(ValueError, match=text):
        CodeWriter(tmp_path, **{**same, **change})
    CodeWriter(tmp_path, **same)


@pytest.mark.parametrize(
    ("codes", "labels", "error", "text"),
    [
        ([torch.zeros(2, 2, 3).long()], None, ValueError, "expected maps of num_embeddings 300"),
        ([torch.zeros(2, 2, 3), torch.zeros(2, 4, 5)], None, TypeError, "integer codes"),
        ([torch.full((2, h, w), K) for h, w in SIZES], None, ValueError, r"in \[0, 300\)"),
        ([torch.full((2, h, w), -1) for h, w in SIZES], None, ValueError, "from -1 to -1"),
        ([torch.zeros(2, 6).long()], None, ValueError, r"codes\[0\] \[2, h, w\]"),
        (
            [torch.zeros(2, 2, 3).long(), torch.zeros(3, 4, 5).long()],
            None,
            ValueError,
            r"codes\[1\] \[2, h, w\] .* got \[3, 4, 5\]",
        ),
        ([], None, ValueError, "at least one level"),
        (
            [torch.zeros(2, h, w).long() for h, w in SIZES],
            torch.tensor([0, 3]),
            ValueError,
            r"labels must be -1 \(none\) or in \[0, 3\)",
        ),
        (
            [torch.zeros(9, h, w).long() for h, w in SIZES],
            None,
            ValueError,
            "records 0 to 8 go beyond the source_records=8",
        ),
    ],
    ids=["levels", "float", "large", "negative", "flat", "counts", "none", "label", "beyond"],
)
def test_bad_records_are_refused(tmp_path, codes, labels, error, text) -> None:
    with pytest.raises(error, match=text), writer(tmp_path, source_records=8) as out:
        out.add(codes, labels)
    assert_holds(tmp_path, [])


@pytest.mark.parametrize(("given", "text"), [(3, "gave 3"), (9, "gave 9")])
def test_encode_of_another_length_is_named(tmp_path, given, text) -> None:
    with pytest.raises(ValueError, match=rf"encode\(0, 8\) must give 8 records, {text}"):
        write(tmp_path, 8, encode=lambda first, stop: [records(first, first + given)])


def full_disk(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", range(6))
def test_a_failing_sync_leaves_the_store_as_it_was(tmp_path, monkeypatch, call) -> None:
    """The syncs of a shard: its file, the new manifest, and the folder after each renaming."""
    with writer(tmp_path) as out:
        out.add(*records(0, 10))
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > call:
            full_disk()
        real(descriptor)

    out = writer(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    if call >= 4:
        out.add(*records(10, 20))
    else:
        with pytest.raises(OSError, match="cannot write to .* what it was before the unfinished"):
            out.add(*records(10, 20))
    monkeypatch.setattr(os, "fsync", real)
    # Once the manifest is renamed, the shard counts; only the folder's sync failed.
    assert_holds(tmp_path, [(0, 10)] if call < 3 else [(0, 20)])
    assert parts(tmp_path) == []
    write(tmp_path / "other", 3)


def filling(small_disk, at: int, leave: int):
    """An encoder; before its record `at` the disk is filled except for this many bytes."""

    def encode_filling(first: int, stop: int):
        for start in range(first, stop, 4):
            if start == at:
                small_disk.fill(leave)
            yield records(start, min(start + 4, stop))

    return encode_filling


def test_a_full_disk_is_told_and_costs_one_shard(small_disk) -> None:
    folder, per_shard = small_disk.folder / "s", 2000  # 68 KB
    encoder = filling(small_disk, at=2 * per_shard, leave=40_000)
    with pytest.raises(OSError, match="cannot write to .*(space|large).* continue with") as caught:
        write(folder, 7000, per_shard=per_shard, encode=encoder)
    small_disk.clear()
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert len(CodeStore(folder)) == 2 * per_shard
    assert not any(report.problem for report in verify(folder))
    assert parts(folder) == []
    asked = []
    write(folder, 7000, per_shard=per_shard, encode=lambda *r: asked.append(r) or encode(*r))
    assert asked == [(2 * per_shard, 7000)]
    assert len(CodeStore(folder)) == 7000


def test_a_disk_that_is_full_at_the_manifest_leaves_the_old_one(small_disk) -> None:
    folder = small_disk.folder / "s"
    encoder = filling(small_disk, at=240, leave=4096)  # room for a shard of 4 records
    with pytest.raises(OSError, match="cannot write to .*(space|large)"):
        write(folder, 400, per_shard=4, encode=encoder)
    small_disk.clear()
    assert (folder / "manifest.json").stat().st_size > 4096
    assert_holds(folder, [(0, 240)])
    assert parts(folder) == []


def test_unfinished_files_of_the_dead_are_removed_of_the_living_kept(tmp_path) -> None:
    living = writer(tmp_path, first=100)
    living.add(*records(100, 103))
    (tmp_path / ".shard-000000000000.bin.dead.part").write_bytes(b"half")
    writer(tmp_path)
    assert len(parts(tmp_path)) == 1
    living.flush()
    assert_holds(tmp_path, [(100, 103)])


def test_shards_of_the_dead_that_never_counted_are_replaced_or_removed(tmp_path) -> None:
    (tmp_path / "shard-000000000000.bin").write_bytes(b"replaced")
    (tmp_path / "shard-000000000013.bin").write_bytes(b"removed: its records come in others")
    (tmp_path / "shard-000000000025.bin").write_bytes(b"kept: nobody has its records")
    (tmp_path / "shard-mine.bin").write_bytes(b"kept: not of this store")
    write(tmp_path, 25)
    assert_holds(tmp_path, [(0, 25)])
    unnamed = {path.name for path in tmp_path.glob("shard-*")} - {
        shard.name for shard in CodeStore(tmp_path).manifest.shards
    }
    assert unnamed == {"shard-000000000025.bin", "shard-mine.bin"}


def test_damaged_shards_are_taken_out_and_written_again(tmp_path) -> None:
    write(tmp_path, 50)
    path = tmp_path / "shard-000000000020.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    (tmp_path / "shard-000000000030.bin").unlink()
    assert [r.shard.first for r in discard_damaged(tmp_path)] == [20, 30]
    assert_holds(tmp_path, [(0, 20), (40, 50)])
    asked = []
    write(tmp_path, 50, encode=lambda *r: asked.append(r) or encode(*r))
    assert asked == [(20, 40)]
    assert_holds(tmp_path, [(0, 50)])


def test_a_store_is_readable_by_others_who_share_the_disk(tmp_path) -> None:
    old = os.umask(0o022)
    try:
        write(tmp_path, 5)
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o644}


def test_no_shard_is_written_between_finding_it_damaged_and_its_removal(
    tmp_path, monkeypatch
) -> None:
    random_codes(300, 10).write(tmp_path / "s", shard_bytes=5 * 51)  # 5 records per shard
    (tmp_path / "s" / "shard-000000000005.bin").unlink()
    held = []

    def watched(folder: Path):
        with (folder / ".lock").open("ab") as file:
            held.append(not lock_file(file, block=False))
        return verify(folder)

    monkeypatch.setattr(code_store, "verify", watched)
    assert [report.shard.first for report in discard_damaged(tmp_path / "s")] == [5]
    assert held == [True]


def test_nothing_is_left_where_there_is_no_store_to_repair(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json"):
        discard_damaged(tmp_path)
    assert not list(tmp_path.iterdir())
