"""Damaged or malicious manifests: an error gives the reason, and nothing else happens."""

from __future__ import annotations

import json
import resource
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.codes import CodeSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqvae2_fast.data import CodeStore, verify

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELDS = (
    "kind",
    "version",
    "num_embeddings",
    "level_sizes",
    "bits",
    "class_names",
    "checkpoint_hash",
    "source_records",
    "records",
    "shards",
)
SHARD_FIELDS = ("name", "first", "records", "crc32")

numbers = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([2**24, 2**31, 2**32, 2**53, 2**63, 2**64, 10**400]),
    st.floats(),
    st.booleans(),
)
names = st.one_of(
    st.sampled_from(
        [
            "../x.bin",
            "/etc/passwd",
            "manifest.json",
            ".lock",
            "a/b",
            "",
            ".",
            "..",
            "x\0y",
            "\ud800",
            "shard-000000000000.bin",
            "shard-000000000005.bin",
            "C:\\x",
            "x" * 5000,
            "sub",
            "link",
        ]
    ),
    st.text(max_size=8),
)
values = st.recursive(
    st.one_of(numbers, names, st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
sizes = st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=3)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from(FIELDS), values),
        st.tuples(st.just("set"), st.just("level_sizes"), sizes),
        st.tuples(st.just("drop"), st.sampled_from(FIELDS), st.none()),
        st.tuples(st.just("shard"), st.sampled_from(SHARD_FIELDS), values),
        st.tuples(st.just("drop shard"), st.sampled_from(SHARD_FIELDS), st.none()),
        st.tuples(st.just("twice"), st.none(), st.none()),
        st.tuples(st.just("cut"), st.integers(0, 700), st.none()),
        st.tuples(st.just("byte"), st.integers(0, 700), st.integers(0, 255)),
    ),
    min_size=5,
    max_size=5,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "s"
    codes = [torch.arange(60).view(10, 2, 3), torch.arange(120).view(10, 3, 4)]
    CodeSet(codes, 120, torch.arange(10) % 2, ("a", "b")).write(folder, shard_bytes=5 * 21)
    (folder / "sub").mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    return folder


def damaged(manifest: dict, edits: list[tuple]) -> bytes:
    raw = json.loads(json.dumps(manifest))
    tail = []
    for kind, where, value in edits:
        if kind == "set":
            raw[where] = value
        elif kind == "drop":
            raw.pop(where, None)
        elif kind in ("cut", "byte"):
            tail.append((kind, where, value))
        elif isinstance(raw.get("shards"), list) and raw["shards"]:
            if kind == "twice":
                raw["shards"] = raw["shards"] + raw["shards"]
            elif isinstance(raw["shards"][-1], dict):
                if kind == "shard":
                    raw["shards"][-1][where] = value
                else:
                    raw["shards"][-1].pop(where, None)
    content = bytearray(json.dumps(raw, indent=1).encode("utf-8", "surrogatepass"))
    for kind, where, value in tail:
        if kind == "cut":
            del content[where:]
        elif where < len(content):
            content[where] = value
    return bytes(content)


@contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Makes allocations fail that would take the process more than `more` bytes beyond what it has
    mapped."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_damaged_manifests_are_refused_or_read_within_bounds(store) -> None:
    sound = json.loads((store / "manifest.json").read_text())
    seen = {"refused": 0, "read": 0}

    def check(edits: list[tuple]) -> None:
        (store / "manifest.json").write_bytes(damaged(sound, edits))
        try:
            opened = CodeStore(store)
            reports = verify(store)
            codes, labels = opened.batch(torch.arange(len(opened)))
        except ValueError as error:
            assert str(store) in str(error)
            assert len(str(error)) < 1000
            seen["refused"] += 1
            return
        assert len(labels) == len(opened) <= 10 * 21
        assert len(reports) == len(opened.manifest.shards)
        assert all(int(maps.max()) < opened.num_embeddings for maps in codes if len(maps))
        seen["read"] += 1

    @settings(
        max_examples=1700,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(changes)
    def each_change_and_all_together(edits) -> None:
        for edit in edits:
            check([edit])
        check(edits)

    with bounded_memory(400 * 2**20):  # hypothesis alone takes 120 MiB
        each_change_and_all_together()
    assert seen["refused"] > 7000
    assert seen["read"] > 500
    assert sum(seen.values()) >= 10_000


def test_a_manifest_without_end_is_not_read(store) -> None:
    content = (store / "manifest.json").read_bytes()
    with (store / "manifest.json").open("wb") as file:
        file.truncate(2**40)  # a hole: no bytes on the disk
    try:
        with pytest.raises(ValueError, match="larger than 8388608 bytes"):
            CodeStore(store)
    finally:
        (store / "manifest.json").write_bytes(content)
