"""Damaged shards are taken out of a store, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers.codes import random_codes

from vqvae2_fast.data import code_store, discard_damaged, verify
from vqvae2_fast.files.durable import lock_file

if TYPE_CHECKING:
    from pathlib import Path


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
