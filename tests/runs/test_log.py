"""log.jsonl: it holds whole lines, up to the step from which a run continues."""

from __future__ import annotations

import json

import pytest

from vqvae2_fast.runs.log import RunLog


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_past_the_step_of_the_checkpoint_are_dropped(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", 0)
    for step in (1, 2, 3):
        log.write(step, loss=1 / step)
    resumed = RunLog(tmp_path / "log.jsonl", 2)
    assert [line["step"] for line in lines(tmp_path / "log.jsonl")] == [1, 2]
    assert resumed.lines == log.lines[:2]


def test_a_line_cut_off_by_a_crash_and_one_that_is_damaged_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'{"step": 1}\n{"st\xffp": 1}\n[3]\n{"step": "2"}\n{"step": 2}\n{"step": 2, "l'
    )
    RunLog(path, 5).write(6, loss=0.5)
    assert lines(path) == [{"step": 1}, {"step": 2}, {"step": 6, "loss": 0.5}]


def test_a_new_run_begins_an_empty_log(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    RunLog(tmp_path / "log.jsonl", 0)
    assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_a_full_disk_leaves_whole_lines(small_disk):
    path = small_disk.folder / "log.jsonl"
    log = RunLog(path, 0)
    log.write(1, loss=0.25)
    small_disk.fill(0)
    with pytest.raises(
        OSError, match=r"cannot write to .*log\.jsonl: .*(space|large).*with resume"
    ):
        for step in range(2, 1000):  # the last page of the file still has room
            log.write(step, loss=0.5)
    small_disk.clear()
    assert lines(path) == log.lines
    assert path.read_bytes().endswith(b"\n")


def test_a_full_disk_on_resume_leaves_the_log(small_disk):
    path = small_disk.folder / "log.jsonl"
    log = RunLog(path, 0)
    for step in range(1, 400):
        log.write(step, loss=0.5)
    before = path.read_bytes()
    small_disk.fill(0)
    with pytest.raises(OSError, match="No space left|File too large"):
        RunLog(path, 300)
    small_disk.clear()
    assert path.read_bytes() == before
