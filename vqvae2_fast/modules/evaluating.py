"""Evaluation mode for the duration of a `with` block, in any number of threads at once."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["evaluating"]

_lock = threading.Lock()
# For each module that was in training mode: how many blocks hold it in evaluation mode.
_held: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; each of its modules gets its own mode back afterwards.

    The mode belongs to the module, not to the thread. A block that ends must not put a module back
    into training mode while another block holds it; the last block does.
    """
    with _lock:
        training = [module for module in model.modules() if module.training or module in _held]
        for module in training:
            _held[module] = _held.get(module, 0) + 1
        model.eval()
    try:
        yield
    finally:
        with _lock:
            for module in training:
                _held[module] -= 1
                if _held[module] == 0:
                    del _held[module]
                    module.training = True
