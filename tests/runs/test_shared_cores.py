"""OpenMP's threads spin shortly while other processes use the cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from vqvae2_fast import cli
from vqvae2_fast.commands.common import Result
from vqvae2_fast.commands.info import Info
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.runs.shared_cores import CoreWatch, shared_cores
from vqvae2_fast.testing.configs import SMALL_VQVAE
from vqvae2_fast.training import TrainConfig, train, vqvae_stage

WATCH = "shared_cores"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what is waited")

TASKS_BEFORE_DURING_AND_AFTER = """
import os, torch
from vqvae2_fast.runs.shared_cores import IdleTeams
def tasks(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads({threads})
torch.ones(2**20).sum()
teams, found = IdleTeams(), [tasks()]
teams.start()
while len(found) < 2 or tasks() < found[0] + {more}: found[1:] = [tasks()]
teams.stop()
while tasks() > found[0]: pass
print("as before")
"""


class Teams:
    def __init__(self) -> None:
        self.started = False

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.started = False


def started_after(*seconds: dict[str, float]) -> list[bool]:
    """Whether teams run after each look, of which one follows the other after a second.

    Args:
        seconds: That each thread had waited for a core, first before the watch began.
    """
    waited = iter({thread: round(s * 1e9) for thread, s in at.items()} for at in seconds)
    teams, times = Teams(), iter(range(len(seconds)))
    watch = CoreWatch(teams, lambda: next(waited), lambda: next(times))
    found = []
    for _ in seconds[1:]:
        watch.look()
        found.append(teams.started)
    return found


def test_teams_run_while_threads_wait():
    one = [{"1": at} for at in (0.0, 0.01, 0.4, 0.8, 0.81, 0.82)]
    assert started_after(*one) == [False, True, True, False, False]


def test_what_all_threads_waited_counts():
    assert started_after({"1": 1.0, "2": 1.0}, {"1": 1.1, "2": 1.1}) == [True]


def test_teams_neither_start_nor_stop_between_the_limits():
    assert started_after({"1": 0.0}, {"1": 0.1}) == [False]
    assert started_after({"1": 0.0}, {"1": 0.5}, {"1": 0.6}) == [True, True]


def test_a_thread_that_ended_takes_nothing_away():
    assert started_after({"1": 0.0, "2": 9.0}, {"1": 0.4}) == [True]


@on_linux
def test_a_team_has_as_many_threads_as_an_operator_and_ends(tmp_path):
    threads = len(os.sched_getaffinity(0))
    if threads == 1:
        pytest.skip("one core")
    code = TASKS_BEFORE_DURING_AND_AFTER.format(threads=threads, more=threads)
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.stdout == "as before\n"


@on_linux
def test_one_thread_has_no_teams(tmp_path):
    code = TASKS_BEFORE_DURING_AND_AFTER.format(threads=1, more=0)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def watches() -> int:
    return sum(thread.name == WATCH for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_policy(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


@on_linux
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


@on_linux
def test_commands_watch(monkeypatch):
    found = []
    monkeypatch.setattr(Info, "run", lambda self: found.append(watches()) or Result({}, []))
    assert cli.main(["info"]) == 0
    assert found == [1]


@on_linux
def test_a_training_watches():
    found = []
    images = ImageTensorDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    config = TrainConfig(steps=1, batch_size=4)
    stage = vqvae_stage(VQVAE2(SMALL_VQVAE), images, images, config)
    train(stage, config, on_log=lambda step, values: found.append(watches()))
    assert set(found) == {1}
