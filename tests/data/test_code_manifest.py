"""The bytes of a code store, and manifests that are refused."""

from __future__ import annotations

import json
import math
import zlib
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.codes import CodeSet, random_codes

from vqvae2_fast.data import CodeStore

if TYPE_CHECKING:
    from pathlib import Path


SHARD = "shard-000000000000.bin"


def assert_equal(store: CodeStore, saved: CodeSet) -> None:
    codes, labels = store.batch(torch.arange(len(saved)))
    assert len(store) == len(saved)
    assert all(torch.equal(a, b) for a, b in zip(codes, saved.codes, strict=True))
    assert torch.equal(labels, saved.labels)


def pack_by_bits(values: list[int], bits: int) -> bytes:
    """The format's definition, one bit at a time: code i's bit j is bit i·bits + j of the map."""
    out = bytearray(math.ceil(len(values) * bits / 8))
    for i, value in enumerate(values):
        for j in range(bits):
            at = i * bits + j
            out[at // 8] |= (value >> j & 1) << (at % 8)
    return bytes(out)


@pytest.mark.parametrize("k", [1, 3, 200, 512, 70000])
def test_bytes_on_disk_are_the_defined_ones(tmp_path, k) -> None:
    dataset = random_codes(k, 3)
    dataset.write(tmp_path / "s")
    bits = max(1, math.ceil(math.log2(k)))
    expected = b"".join(
        b"".join(pack_by_bits(level[i].flatten().tolist(), bits) for level in dataset.codes)
        + int(dataset.labels[i]).to_bytes(4, "little", signed=True)
        for i in range(3)
    )
    assert (tmp_path / "s" / SHARD).read_bytes() == expected


def test_manifest_has_the_documented_fields(tmp_path) -> None:
    random_codes(100, 7).write(tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    content = (tmp_path / "s" / SHARD).read_bytes()
    assert manifest == {
        "kind": "code_store",
        "version": 1,
        "num_embeddings": 100,
        "level_sizes": [[3, 2], [5, 7]],
        "bits": 7,
        "class_names": ["a", "b", "ü"],
        "checkpoint_hash": "sha256:0f",
        "source_records": 7,
        "records": 7,
        "shards": [
            {"name": SHARD, "first": 0, "records": 7, "crc32": zlib.crc32(content)},
        ],
    }


def test_maps_larger_than_a_chunk_read_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vqvae2_fast.data.code_format._CHUNK_CODES", 64)
    saved = random_codes(300, 9)
    saved.write(tmp_path / "s")
    loaded = CodeStore(tmp_path / "s")
    assert_equal(loaded, saved)


def test_a_shard_that_the_manifest_does_not_name_does_not_count(tmp_path) -> None:
    random_codes(256, 7).write(tmp_path / "s")
    (tmp_path / "s" / "shard-000000000007.bin").write_bytes(b"half written")
    assert len(CodeStore(tmp_path / "s")) == 7


@pytest.fixture
def store(tmp_path) -> Path:
    random_codes(100, 7).write(tmp_path / "s")
    return tmp_path / "s"


def edit(store: Path, **changes) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    shard = manifest["shards"][0]
    for name in list(changes):
        if name.startswith("shard_"):
            shard[name.removeprefix("shard_")] = changes.pop(name)
    (store / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_a_cut_shard_is_found(store) -> None:
    path = store / SHARD
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match="has 286 bytes, expected 287 .7 records of 41.*discard_damaged"
    ):
        CodeStore(store)


def test_a_missing_shard_is_named(store) -> None:
    (store / SHARD).unlink()
    with pytest.raises(ValueError, match=r"shard-0{12}\.bin is missing .*discard_damaged"):
        CodeStore(store)


@pytest.mark.parametrize(
    "name", ["../x.bin", "/etc/passwd", "a/b.bin", "..", ".hidden", "a\\b", "", "x\n", 7]
)
def test_shard_names_that_are_paths_are_refused(store, name) -> None:
    (store.parent / "x.bin").write_bytes((store / SHARD).read_bytes())
    edit(store, shard_name=name)
    with pytest.raises(ValueError, match="expected name to be a plain file name"):
        CodeStore(store)


def test_a_shard_that_is_a_link_is_refused(store) -> None:
    moved = (store / SHARD).rename(store.parent / "elsewhere.bin")
    (store / SHARD).symlink_to(moved)
    with pytest.raises(ValueError, match="not a regular file"):
        CodeStore(store)


def test_newer_version_is_refused_by_number(store) -> None:
    edit(store, version=2)
    with pytest.raises(ValueError, match="has version 2, this release reads up to 1; install"):
        CodeStore(store)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "pipeline"}, "expected kind .* got 'pipeline'"),
        ({"version": "1"}, "expected version .* got '1'"),
        ({"version": True}, "expected version .* got True"),
        ({"num_embeddings": 0}, "expected num_embeddings .* got 0"),
        ({"num_embeddings": 2**40}, "expected num_embeddings .* 16777216"),
        ({"bits": 8}, "expected bits to be 7, got 8"),
        ({"level_sizes": [[3, 0]]}, "expected level_sizes .* pairs"),
        ({"level_sizes": []}, "level_sizes must be 1 to 16 pairs"),
        (
            {"level_sizes": [[10**9, 10**9]]},
            "level_sizes must be 1 to 16 pairs .* at most 4194304 codes",
        ),
        ({"level_sizes": [[1, 1]] * 17}, "level_sizes must be 1 to 16 pairs"),
        ({"level_sizes": [[3, 2], [5, 8]]}, "has 287 bytes, expected 315"),
        ({"source_records": 6}, "shard-0.* expected records .* 6, got 7"),
        ({"shard_first": -1}, "expected first .* got -1"),
        ({"shard_first": 2**60}, "expected first .* got 1152"),
        ({"shard_crc32": 2**32}, "expected crc32 .* got 4294967296"),
        ({"class_names": ["\ud800", "b", "c"]}, "expected class_names .* string"),
        ({"class_names": [1]}, "expected class_names .* string"),
        ({"class_names": ["x" * 500_000]}, "name of class 0 has 500000 characters, at most 1024"),
        ({"class_names": ["x"] * 300_000}, "300000 classes; at most 262144 are supported"),
        ({"checkpoint_hash": None}, "expected checkpoint_hash .* string"),
        ({"shards": None}, "expected shards to be a list"),
        ({"shards": [3]}, "object of name, first, records and crc32"),
        ({"records": 8}, "expected records to be 7, got 8"),
        ({"shard_records": -7}, "expected records .* got -7"),
        ({"shard_crc32": None}, "expected crc32 .* got None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_damaged_manifest_names_the_field(store, changes, text) -> None:
    edit(store, **changes)
    with pytest.raises(ValueError, match=text):
        CodeStore(store)


def test_one_shard_named_twice_is_refused(store) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["shards"] = [{**manifest["shards"][0], "first": first} for first in (0, 7)]
    manifest["source_records"] = 14
    (store / "manifest.json").write_text(json.dumps({**manifest, "records": 14}))
    with pytest.raises(ValueError, match="a shard is named twice"):
        CodeStore(store)


def test_shards_that_overlap_are_refused(tmp_path) -> None:
    random_codes(100, 8).write(tmp_path / "s", shard_bytes=4 * 41)
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    manifest["shards"][1]["first"] = 3
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="expected first to be an integer from 4 .* got 3"):
        CodeStore(tmp_path / "s")
