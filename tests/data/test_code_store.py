"""Reading code stores: random access, filters, checks, and what a prior expects."""

from __future__ import annotations

import json
import os
import pickle
import resource
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.codes import CodeSet, random_codes
from torch.utils.data import DataLoader

from vqvae2_fast.data import CodeStore, check_matches, verify
from vqvae2_fast.data.code_format import read_manifest, write_manifest
from vqvae2_fast.models.configs import PixelSNAILConfig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def memory() -> CodeSet:
    return random_codes(300, 23)


@pytest.fixture
def path(tmp_path, memory) -> Path:
    memory.write(tmp_path / "s", shard_bytes=5 * 51)  # 5 records per shard
    return tmp_path / "s"


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and (
        a[1] == b[1] if isinstance(a[1], int) else torch.equal(a[1], b[1])
    )


def test_items_are_those_of_the_set_in_memory(path, memory) -> None:
    store = CodeStore(path)
    assert len(store) == len(memory) == 23
    assert len(store.manifest.shards) == 5
    for i in (0, 4, 5, 22, -1, -23):
        assert same(store[i], memory[i])
    assert [maps.dtype for maps in store[0][0]] == [torch.int64] * 2
    assert store.level_sizes == memory.level_sizes
    assert (store.num_embeddings, store.class_names) == (300, ("a", "b", "ü"))
    assert store.checkpoint_hash == "sha256:0f"


@pytest.mark.parametrize("indices", [[], [3], [22, 0, 22, 7], list(range(23)), [-1, 5, -23]])
def test_batches_are_those_of_the_set_in_memory(path, memory, indices) -> None:
    indices = torch.tensor(indices, dtype=torch.int64)
    assert same(CodeStore(path).batch(indices), memory.batch(indices))
    assert all(maps.is_contiguous() for maps in CodeStore(path).batch(indices)[0])


@pytest.mark.parametrize("k", [1, 2, 3, 128, 512, 8192, 32769, 2**24])
def test_any_number_of_codes_reads_back(tmp_path, k) -> None:
    memory = random_codes(k, 23)
    memory.write(tmp_path / "s")
    for count in (1, 4, 5, 23):  # both ways of unpacking
        assert same(
            CodeStore(tmp_path / "s").batch(torch.arange(count)), memory.batch(torch.arange(count))
        )


def test_indices_out_of_range_are_refused(path) -> None:
    for indices in ([23], [-24], [0, 99]):
        with pytest.raises(IndexError, match=r"indices must be in \[-23, 23\)"):
            CodeStore(path).batch(torch.tensor(indices))
    with pytest.raises(IndexError):
        CodeStore(path)[23]


def test_a_filter_keeps_the_records_of_its_labels_in_order(path, memory) -> None:
    for labels, numbers in ((["ü"], [2]), ([0, "b"], [0, 1]), ([-1], [-1]), ([], [])):
        view = CodeStore(path).with_labels(labels)
        keep = torch.isin(memory.labels, torch.tensor(numbers, dtype=torch.int64)).nonzero()[:, 0]
        assert len(view) == len(keep)
        assert torch.equal(view.labels, memory.labels[keep])
        assert torch.equal(view.positions, keep)
        assert same(view.batch(torch.arange(len(view))), memory.batch(keep))


def test_filters_add_up_and_leave_the_store_alone(path, memory) -> None:
    store = CodeStore(path)
    view = store.with_labels([0, 1]).with_labels([1, 2])
    keep = (memory.labels == 1).nonzero()[:, 0]
    assert torch.equal(view.positions, keep)
    assert same(view[-1], memory[int(keep[-1])])
    assert len(store) == 23


def test_a_selection_gives_its_records_in_its_order_and_as_often(path, memory) -> None:
    chosen = torch.tensor([7, 2, 2, 22])
    view = CodeStore(path).select(chosen)
    assert len(view) == 4
    assert same(view.batch(torch.arange(4)), memory.batch(chosen))
    assert torch.equal(view.labels, memory.labels[chosen])
    again = view.select(torch.tensor([3, 0]))
    assert again.positions.tolist() == [22, 7]


@pytest.mark.parametrize("number", [-1, 23])
def test_a_selection_of_records_that_are_not_there_is_refused(path, number) -> None:
    with pytest.raises(IndexError, match=rf"in \[0, 23\), got {number} to {number}"):
        CodeStore(path).select(torch.tensor([number]))
    with pytest.raises(IndexError, match=rf"in \[0, 2\), got {number} to {number}"):
        CodeStore(path).select(torch.tensor([4, 5])).select(torch.tensor([number]))


@pytest.mark.parametrize("label", [3, -2, "c", 1.0])
def test_unknown_labels_are_named_with_the_known(path, label) -> None:
    with pytest.raises(ValueError, match=f"no label {label!r} in .* one of a, b, ü"):
        CodeStore(path).with_labels([label])


def test_an_empty_store_has_its_shape(tmp_path) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    store = CodeSet([nothing.view(0, 2, 3)], 16, nothing).write(tmp_path / "s")
    assert (len(store), store.complete, verify(tmp_path / "s")) == (0, True, [])
    assert store.batch(torch.arange(0))[0][0].shape == (0, 2, 3)
    assert (len(store.labels), len(store.positions)) == (0, 0)


def test_worker_processes_read_the_same(path, memory) -> None:
    store = CodeStore(path)
    _ = store[0]
    loader = DataLoader(store, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for i, item in enumerate(loader):
        assert same(item, memory[i])


def test_a_pickled_store_holds_no_records(path, memory) -> None:
    store = CodeStore(path)
    store.batch(torch.arange(23))
    copy = pickle.loads(pickle.dumps(store))
    assert not copy._maps
    assert same(copy[7], memory[7])


def test_a_shard_that_is_cut_in_use_is_an_error(tmp_path) -> None:
    random_codes(300, 2000).write(tmp_path / "s")
    store = CodeStore(tmp_path / "s")
    store[0]
    (path,) = (tmp_path / "s").glob("*.bin")
    os.truncate(path, 5000)
    for read in (
        lambda: store[1999],
        lambda: store.batch(torch.tensor([1999])),
        lambda: store.labels,
    ):
        with pytest.raises(ValueError, match=r"shard .*\.bin has 5000 bytes, expected"):
            read()


def test_maps_keep_no_file_open(tmp_path) -> None:
    random_codes(300, 200).write(tmp_path / "s", shard_bytes=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        assert len(CodeStore(tmp_path / "s").batch(torch.arange(200))[1]) == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_verify_reports_each_shard(path) -> None:
    assert [report.problem for report in verify(path)] == [""] * 5
    flipped = path / "shard-000000000005.bin"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 128
    flipped.write_bytes(content)
    cut = path / "shard-000000000010.bin"
    cut.write_bytes(cut.read_bytes()[:-1])
    (path / "shard-000000000015.bin").unlink()
    problems = [report.problem for report in verify(path)]
    assert problems[0] == problems[4] == ""
    assert "CRC32" in problems[1]
    assert "has 254 bytes, expected 255" in problems[2]
    assert "is missing" in problems[3]


def rewrite(path: Path, at: int, value: int) -> None:
    """Changes a byte of the first shard, and the checksum with it."""
    shard = path / "shard-000000000000.bin"
    content = bytearray(shard.read_bytes())
    content[at] = value
    shard.write_bytes(content)
    manifest = read_manifest(path)
    first = replace(manifest.shards[0], crc32=zlib.crc32(content))
    write_manifest(path, replace(manifest, shards=(first, *manifest.shards[1:])))


def test_codes_out_of_range_are_never_given(path) -> None:
    rewrite(path, 51, 0xFF)
    rewrite(path, 52, 0xFF)  # the first code of record 1 is 511 of 300
    store = CodeStore(path)
    with pytest.raises(ValueError, match=r"record 1 of .* in shard-0{12}\.bin, has code 511"):
        store.batch(torch.tensor([7, 1, 20]))
    assert len(store.batch(torch.tensor([0, 2]))[1]) == 2
    assert verify(path)[0].problem == "codes up to 511, num_embeddings is 300"


def test_labels_out_of_range_are_never_given(path) -> None:
    rewrite(path, 50, 1)  # the top byte of record 0's label
    store = CodeStore(path)
    with pytest.raises(ValueError, match="record 0 of .* has label 1677"):
        store[0]
    with pytest.raises(ValueError, match="record 0 of .* has label 1677"):
        _ = store.labels
    assert "labels from" in verify(path)[0].problem


def test_shards_of_before_first_was_written_are_read(path, memory) -> None:
    raw = json.loads((path / "manifest.json").read_text())
    for shard in raw["shards"]:
        del shard["first"]
    del raw["source_records"]
    (path / "manifest.json").write_text(json.dumps(raw))
    store = CodeStore(path)
    assert same(store.batch(torch.arange(23)), memory.batch(torch.arange(23)))


def prior(**changes) -> PixelSNAILConfig:
    base = {"size": (6, 4), "num_embeddings": 300, "channels": 8, "num_heads": 2, "num_classes": 3}
    return PixelSNAILConfig(**{**base, "condition_sizes": ((3, 2),), **changes})


@pytest.fixture
def matching(tmp_path) -> CodeStore:
    codes = [torch.zeros(2, 3, 2).long(), torch.zeros(2, 6, 4).long()]
    return CodeSet(codes, 300, torch.tensor([-1, 2]), ("a", "b", "c")).write(tmp_path / "m")


def test_priors_of_the_store_match(matching) -> None:
    check_matches(matching, prior())
    check_matches(matching, prior(num_classes=0))
    check_matches(matching, prior(size=(3, 2), condition_sizes=()))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"num_embeddings": 512},
            "expected prior .* num_embeddings 300 .* num_embeddings 512",
        ),
        ({"size": (3, 4)}, "level sizes 3x2, 6x4 .* level sizes 3x2, 3x4"),
        ({"size": (6, 4), "condition_sizes": ()}, "level sizes 3x2 .* level sizes 6x4"),
        ({"condition_sizes": ((3, 4),)}, "sizes 3x2, 6x4 .* sizes 3x4, 6x4"),
        ({"size": (12, 8), "condition_sizes": ((3, 2), (6, 4))}, "sizes 3x2, 6x4, 12x8"),
        ({"num_classes": 4}, "/m has 3 classes, the prior expects 4"),
    ],
    ids=["codes", "size", "level", "condition", "levels", "classes"],
)
def test_priors_of_other_codes_are_refused(matching, changes, text) -> None:
    with pytest.raises(ValueError, match=text):
        check_matches(matching, prior(**changes))
