"""OpenMP's threads spin only briefly while other processes use the cores."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from vqvae2_fast import cli
from vqvae2_fast.commands.common import Result
from vqvae2_fast.commands.info import Info
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.machine.cores import own_cores
from vqvae2_fast.machine.shared_cores import CoreWatch, shared_cores
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.testing.configs import SMALL_VQVAE
from vqvae2_fast.training import TrainConfig, train, vqvae_stage

WATCH = "shared_cores"
where_it_is_counted = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="nothing counts how long threads wait"
)

TASKS = """
import os, torch
from vqvae2_fast.machine.shared_cores import IdleTeams
def tasks(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads({threads})
torch.ones(2**20).sum()
teams = IdleTeams()
"""
TEAMS_COME_AND_GO = """
before = tasks()
teams.start()
while tasks() < before + {threads}: pass
teams.stop()
while tasks() > before: pass
"""
NO_TEAMS = """
teams.start()
assert not teams.started
"""
# Each thread has a number of its own for OpenMP, which it keeps.
THE_PRESENT_NUMBER_COUNTS = """
import threading
read, changed = threading.Event(), threading.Event()
def watch():
    torch.get_num_threads()
    read.set()
    changed.wait()
    teams.start()
thread = threading.Thread(target=watch)
thread.start()
read.wait()
torch.set_num_threads(1)
changed.set()
thread.join()
assert not teams.started
"""
# Python finds room for some threads only.
NO_ROOM = """
import threading
start, room = threading.Thread.start, [2]
def started(thread):
    if not room[0]: raise RuntimeError("can't start new thread")
    room[0] -= 1
    start(thread)
threading.Thread.start = started
teams.start()
assert not teams.started
teams.stop()
"""


class Teams:
    def __init__(self) -> None:
        self.started = False

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.started = False


def started_after(*seconds: dict[str, float]) -> list[bool]:
    """Whether teams run after each look, on two cores; looks are one second apart.

    Args:
        seconds: That each thread had waited for a core, first before the watch began.
    """
    waited = iter({thread: round(s * 1e9) for thread, s in at.items()} for at in seconds)
    teams, times = Teams(), iter(range(len(seconds)))
    watch = CoreWatch(teams, lambda: next(waited), lambda: next(times), num_cores=2)
    found = []
    for _ in seconds[1:]:
        watch.look()
        found.append(teams.started)
    return found


def test_teams_run_while_threads_wait():
    one = [{"1": at} for at in (0.0, 0.01, 0.5, 1.0, 1.01, 1.02)]
    assert started_after(*one) == [False, True, True, False, False]


def test_what_all_threads_waited_counts():
    assert started_after({"1": 1.0, "2": 1.0}, {"1": 1.15, "2": 1.15}) == [True]


def test_teams_neither_start_nor_stop_between_the_limits():
    assert started_after({"1": 0.0}, {"1": 0.1}) == [False]
    assert started_after({"1": 0.0}, {"1": 0.5}, {"1": 0.6}) == [True, True]


def test_a_thread_that_ended_takes_nothing_away():
    assert started_after({"1": 0.0, "2": 9.0}, {"1": 0.4}) == [True]


def test_what_a_thread_waited_before_it_was_seen_does_not_count():
    assert started_after({"1": 0.0}, {"1": 0.0, "2": 9.0}) == [False]


def in_a_process(code: str, threads: int, folder) -> None:
    subprocess.run(
        [sys.executable, "-c", (TASKS + code).format(threads=threads)],
        cwd=folder,
        check=True,
        timeout=120,
    )


@where_it_is_counted
@pytest.mark.skipif(len(own_cores()) == 1, reason="one core")
@pytest.mark.parametrize(
    "code", [TEAMS_COME_AND_GO, THE_PRESENT_NUMBER_COUNTS, NO_ROOM], ids=["ends", "number", "room"]
)
def test_a_team_has_as_many_threads_as_an_operator(code, tmp_path):
    in_a_process(code, len(own_cores()), tmp_path)


@where_it_is_counted
def test_one_thread_has_no_teams(tmp_path):
    in_a_process(NO_TEAMS, 1, tmp_path)


def watches() -> int:
    return sum(thread.name == WATCH for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_policy(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


@where_it_is_counted
def test_one_watch_for_a_process():
    with shared_cores():
        with shared_cores():
            assert watches() == 1
        assert watches() == 1
    assert watches() == 0


def test_a_policy_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with shared_cores():
        assert watches() == 0


@where_it_is_counted
def test_commands_watch(monkeypatch):
    found = []
    monkeypatch.setattr(Info, "run", lambda self: found.append(watches()) or Result({}, []))
    assert cli.main(["info"]) == 0
    assert found == [1]


@where_it_is_counted
def test_a_training_watches():
    found = []
    images = ImageTensorDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    config = TrainConfig(steps=1, batch_size=4)
    stage = vqvae_stage(VQVAE2(SMALL_VQVAE), images, images, config)
    train(stage, config, on_log=lambda step, values: found.append(watches()))
    assert set(found) == {1}
