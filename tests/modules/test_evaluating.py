"""Evaluation mode for a block, in threads and in forked processes."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from torch import nn

from vqvae2_fast.modules import evaluating as public
from vqvae2_fast.modules.contexts import _held, evaluating

if TYPE_CHECKING:
    from collections.abc import Callable

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(check: Callable[[], bool]) -> bool:
    """What a check finds in a forked process; False if it takes 20 seconds."""
    child = os.fork()
    if not child:
        signal.alarm(20)
        right = False
        try:
            right = check()
        finally:
            os._exit(0 if right else 1)
    return os.waitpid(child, 0)[1] == 0


class OtherThread:
    """A thread that is inside a block until the end of this one."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._inside, self._end = model, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with evaluating(self._model):
            self._inside.set()
            self._end.wait(60)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._inside.wait(60)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def test_each_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with public(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_the_last_of_two_threads_gives_the_mode_back() -> None:
    model = nn.Dropout()
    with OtherThread(model):
        with evaluating(model):
            pass
        assert not model.training
    assert model.training and model not in _held


@needs_fork
def test_a_forked_process_gets_back_the_mode_that_another_thread_holds() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def check() -> bool:
        modes = [module.training for module in model.modules()]
        with evaluating(model):
            inside = model.training
        return (modes, inside, model.training) == ([True, True, False], False, True)

    with OtherThread(model):
        assert in_child(check)
        assert not model.training
    assert model.training


@needs_fork
def test_a_process_forked_inside_a_block_stays_in_evaluation_mode_until_its_end() -> None:
    model = nn.Dropout()
    with OtherThread(model):
        block = evaluating(model)
        block.__enter__()

        def check() -> bool:
            inside = model.training
            block.__exit__(None, None, None)
            return not inside and model.training

        assert in_child(check)
        block.__exit__(None, None, None)
    assert model.training


@needs_fork
def test_a_process_forked_while_a_thread_enters_a_block_does_not_wait_for_it() -> None:
    entering, go = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def modules(self):
            entering.set()
            go.wait(60)
            return super().modules()

    model, other = Slow(), nn.Dropout()

    def enter() -> None:
        with evaluating(model):
            pass

    def check() -> bool:
        with evaluating(other):
            return not other.training

    thread = threading.Thread(target=enter)
    thread.start()
    assert entering.wait(60)
    right = in_child(check)
    go.set()
    thread.join()
    assert right
