"""A training takes as many threads as there are cores that other processes leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqvae2_fast.runs import fitting_threads
from vqvae2_fast.runs.fitting_threads import FittingThreads


class Machine:
    """Cores on which this process uses `own` of a second and others `others`."""

    def __init__(self, cores):
        self.time = self.busy = self.own = 0.0
        self.threads = FittingThreads(
            lambda: self.busy, lambda: self.own, lambda: self.time, num_cores=cores
        )

    def number_after(self, own, others, seconds=1.0):
        self.time += seconds
        self.own += own * seconds
        self.busy += (own + others) * seconds
        return self.threads.number()


@pytest.mark.parametrize(
    ("cores", "own", "others", "expected"),
    [(2, 1.9, 0.0, 2), (2, 1.33, 0.67, 1), (2, 0.5, 1.5, 1), (8, 7.0, 1.0, 7), (8, 3.0, 5.0, 3)],
)
def test_others_have_their_cores(cores, own, others, expected):
    assert Machine(cores).number_after(own, others) == expected


def test_a_core_that_is_free_again_is_used_again():
    machine = Machine(2)
    found = [machine.number_after(1.0, others) for others in (1.0, 0.9, 0.4, 0.1, 0.4)]
    assert found == [1, 1, 1, 2, 2]


def test_a_moment_decides_nothing():
    machine = Machine(2)
    assert machine.number_after(1.0, 1.0, seconds=0.1) == 2
    assert machine.number_after(1.0, 1.0, seconds=0.5) == 1


def test_there_are_never_more_than_torch_has(with_threads):
    def number():
        with Machine(64).threads.taken():
            return torch.get_num_threads()

    assert with_threads(2, number) == 2


def test_the_number_is_back_after_an_error(with_threads):
    def failing():
        machine = Machine(2)
        machine.number_after(1.0, 1.0)
        with pytest.raises(KeyError), machine.threads.taken():
            assert torch.get_num_threads() == 1
            raise KeyError
        return torch.get_num_threads()

    assert with_threads(2, failing) == 2


def test_where_nothing_is_known_nothing_changes(with_threads):
    def number():
        with FittingThreads(lambda: None, num_cores=1).taken():
            return torch.get_num_threads()

    assert with_threads(3, number) == 3


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="nothing counts what cores do")
def test_a_busy_process_is_seen():
    before = fitting_threads._busy()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert before is not None
    assert fitting_threads._busy() >= before + 0.05
