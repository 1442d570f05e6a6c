"""A training takes one thread instead of two where another process needs a core."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vqvae2_fast.machine import fitting_threads
from vqvae2_fast.machine.fitting_threads import FittingThreads


class Machine:
    """Cores on which this process uses `own` of a second and others `others`."""

    def __init__(self, cores=2):
        self.time = self.busy = self.own = 0.0
        self.threads = FittingThreads(
            lambda: self.busy, lambda: self.own, lambda: self.time, num_cores=cores
        )

    def takes_one_after(self, own, others, seconds=1.0):
        self.time += seconds
        self.own += own * seconds
        self.busy += (own + others) * seconds
        return self.threads.should_take_one()


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [(1.9, 0.0, False), (1.5, 0.5, False), (1.33, 0.67, True), (0.5, 1.5, True)],
)
def test_another_process_that_needs_a_core_has_one(own, others, expected):
    assert Machine().takes_one_after(own, others) == expected


def test_a_core_that_is_free_again_is_used_again():
    machine = Machine()
    found = [machine.takes_one_after(1.0, others) for others in (1.0, 0.9, 0.4, 0.1, 0.4)]
    assert found == [True, True, True, False, False]


def test_a_moment_decides_nothing():
    machine = Machine()
    assert not machine.takes_one_after(1.0, 1.0, seconds=0.1)
    assert machine.takes_one_after(1.0, 1.0, seconds=0.5)


@pytest.mark.parametrize("cores", [1, 3, 64])
def test_nothing_changes_with_another_number_of_cores(cores):
    assert not Machine(cores).takes_one_after(1.0, 1.0)


def threads_inside(machine):
    with machine.threads.taken():
        return torch.get_num_threads()


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (2, 1), (3, 3)])
def test_two_threads_become_one(threads, expected, with_threads):
    machine = Machine()
    machine.takes_one_after(1.0, 1.0)
    assert with_threads(threads, lambda: threads_inside(machine)) == expected


def test_both_are_back_after_an_error(with_threads):
    def failing():
        machine = Machine()
        machine.takes_one_after(1.0, 1.0)
        with pytest.raises(KeyError), machine.threads.taken():
            assert torch.get_num_threads() == 1
            raise KeyError
        return torch.get_num_threads()

    assert with_threads(2, failing) == 2


def test_nothing_changes_where_nothing_is_known():
    time = iter((0.0, 1.0))
    threads = FittingThreads(lambda: None, clock=lambda: next(time), num_cores=2)
    assert not threads.should_take_one()


@pytest.mark.skipif(not fitting_threads._busy(), reason="nothing counts what cores do")
def test_a_busy_process_is_seen():
    before = fitting_threads._busy()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert fitting_threads._busy() >= before + 0.05
