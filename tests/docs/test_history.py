"""benchmarks/history.py, on the history of a made-up repository."""

from __future__ import annotations

import csv
import shutil
import subprocess

import pytest

COLUMNS = (
    *("contender", "mode", "shape", "median_ms", "matmul_gflop_per_s", "copy_gb_per_s"),
    *("device", "threads", "clock", "commit", "date"),
)
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def history(script):
    return script("history")


def rows(commit, ours, faiss, *, level="avx2", threads=2, product=300.0):
    """A run's rows; faiss is not among the contenders if its time is None."""
    times = {"faiss": faiss, "ours": ours}
    shared = ("search", "512x64", product, 20.0)
    where = (f"A Processor, 2 cores, {level}", threads, "wall", commit, "2026-01-01")
    return [
        (name, *shared[:2], time, *shared[2:], *where)
        for name, time in times.items()
        if time is not None
    ]


class Repository:
    """A clone with results, of which each commit writes the whole file of a level."""

    def __init__(self, folder):
        self.folder = folder / "results"
        self.folder.mkdir()
        self.git("init", "-q")

    def git(self, *arguments):
        identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
        subprocess.run(["git", "-C", self.folder, *identity, *arguments], check=True)

    def write(self, *tables, level="avx2", line_end="\n"):
        with (self.folder / f"a-processor-{level}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator=line_end)
            writer.writerows([COLUMNS, *(row for table in tables for row in table)])

    def commit(self, *tables, **options):
        self.write(*tables, **options)
        self.git("add", ".")
        self.git("commit", "-q", "-m", "Measure")


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


@pytest.fixture
def read(history, repository):
    """The runs of the only workload in the repository, in order."""

    def runs():
        found = history.by_processor(history.rows_of(history.versions(repository.folder)))
        (processor,) = found
        assert processor == "A Processor, 2 cores"
        return history.runs_of(found[processor]).get(("search", "512x64"), [])

    return runs


def test_replaced_rows_are_found_and_kept_ones_count_once(repository, read):
    first, second, third = (
        rows(commit, ours, 30) for commit, ours in (("aaa", 20), ("bbb", 15), ("ccc", 10))
    )
    repository.commit(first)
    repository.commit(first, line_end="\r\n")
    repository.commit(second)
    repository.commit(second, third)
    found = read()
    assert [(run.commit, run.ours["median_ms"]) for run in found] == [
        *(("aaa", "20"), ("bbb", "15"), ("ccc", "10"))
    ]
    assert [run.others["faiss"] for run in found] == [1.5, 2.0, 3.0]


def test_rows_that_are_not_committed_come_last(repository, read):
    repository.commit(rows("aaa", 20, 30))
    repository.write(rows("bbb+", 10, 30))
    first, last = read()
    assert (first.commit, first.changed, last.commit, last.changed) == ("aaa", False, "bbb", True)


def test_others_are_compared_within_a_run(repository, read):
    """Two runs of one commit, the later one without faiss."""
    repository.commit(rows("aaa", 20, 30, product=300.0), rows("aaa", 10, None, product=310.0))
    first, second = read()
    assert first.others == {"faiss": 1.5}
    assert second.others == {}


def test_the_package_counts_as_it_comes(repository, read):
    """A lower level is left out, whether it was measured before or after the highest one."""
    repository.commit(rows("aaa", 20, 30))
    repository.write(rows("bbb", 19, 30), level="avx2")
    repository.commit(rows("bbb", 10, 30, level="avx512"), level="avx512")
    repository.commit(rows("ccc", 18, 30))
    assert [run.ours["median_ms"] for run in read()] == ["20", "10"]


def test_lines_join_the_last_runs_of_commits_alike(history, repository, read):
    repository.commit(
        rows("aaa", 20, 30, product=300.0),
        rows("aaa", 21, 30, product=301.0),
        rows("aaa", 40, 60, threads=1, product=290.0),
        rows("bbb", 15, 30, product=310.0),
        rows("bbb", 30, 60, threads=1, product=295.0),
    )
    lines = history.lines_of(read())
    times = [[run.ours["median_ms"] for run in line] for line in lines]
    assert times == [["21", "15"], ["40", "30"]]


def test_lines_break_at_another_machine_of_the_same_name(history, repository, read):
    repository.commit(rows("aaa", 20, 30, product=300.0), rows("bbb", 10, 15, product=600.0))
    found = read()
    assert [len(line) for line in history.lines_of(found)] == [1, 1]
    assert history.with_history({("search", "512x64"): found}) == {}


def test_the_picture_is_drawn(history, repository, read, tmp_path):
    repository.commit(rows("aaa", 20, 30))
    repository.commit(rows("bbb", 10, None))
    path = tmp_path / "picture.png"
    history.draw("A Processor", {("search", "512x64"): read()}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_repository_is_refused(history, tmp_path):
    with pytest.raises(SystemExit, match="expected a clone of the repository, with git; git rev-"):
        history.versions(tmp_path)


def test_a_shallow_clone_is_refused(history, repository, tmp_path):
    repository.commit(rows("aaa", 20, 30))
    repository.commit(rows("bbb", 10, 30))
    clone = tmp_path / "clone"
    source = f"file://{repository.folder}"
    subprocess.run(["git", "clone", "-q", "--depth", "1", source, clone], check=True)
    with pytest.raises(SystemExit, match="git fetch --unshallow"):
        history.versions(clone)
