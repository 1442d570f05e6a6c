"""Evaluation mode for the duration of a `with` block, in any number of threads at once."""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["evaluating"]

_lock = threading.Lock()
# For each module that was in training mode: how many blocks of each thread hold it in evaluation
# mode.
_held: WeakKeyDictionary[nn.Module, Counter[int]] = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; each of its modules gets its own mode back afterwards.

    The mode belongs to the module, not to the thread. A block that ends must not put a module back
    into training mode while another block holds it; the last block does.
    """
    thread = threading.get_ident()
    with _lock:
        held = _held or ()  # quicker to look into than an empty dictionary of weak keys
        training = [module for module in model.modules() if module.training or module in held]
        for module in training:
            _held.setdefault(module, Counter())[thread] += 1
        if training:  # it takes 0.2 ms for the modules of a prior, and most draws come without
            model.eval()
    try:
        yield
    finally:
        with _lock:
            for module in training:
                _release(module, thread)


def _release(module: nn.Module, thread: int) -> None:
    """Ends one block of a thread."""
    holders = _held[module]
    holders[thread] -= 1
    if holders.total() == 0:
        # In this order, as another thread may fork in between.
        module.training = True
        del _held[module]


def _forget_other_threads() -> None:
    """In a forked process, which has only the thread that forked: ends the others' blocks."""
    global _lock
    _lock = threading.Lock()  # another thread may have held the old one
    own = threading.get_ident()
    for module, holders in list(_held.items()):
        if holders[own]:
            _held[module] = Counter({own: holders[own]})
        else:
            module.training = True
            del _held[module]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
