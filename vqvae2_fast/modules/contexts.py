"""What holds for a whole module or block: mode, device, autocast, seeds, and how it is built."""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = [
    "device_of",
    "evaluating",
    "is_unfilled",
    "seeded",
    "unfilled",
    "without_autocast",
    "without_compiler",
]


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first parameter; models here are never spread over several
    devices."""
    return next(module.parameters()).device


_Module = TypeVar("_Module")


def without_compiler(module: _Module) -> _Module:
    """The module that `torch.compile` was given, with the same weights; any other as it is."""
    # The wrapper's class is not imported, which would import the compiler.
    original: Any = getattr(module, "_orig_mod", None) if isinstance(module, nn.Module) else None
    return module if original is None else original


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """`torch.autocast`, switched off, on devices that have it; `meta` has none."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What the block draws on the CPU follows from the seed, and the caller's generator goes on as
    if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


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


_unfilled = ContextVar("unfilled", default=False)


class _SkipRandomFills(TorchFunctionMode):
    _FILLS = (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in self._FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Within the block, layers are built with whatever is in the memory of their random weights.

    Every weight has to be loaded afterwards. On the meta device this also avoids arithmetic, for
    which torch would import its compiler (1.3 s).
    """
    token = _unfilled.set(True)
    try:
        with _SkipRandomFills():
            yield
    finally:
        _unfilled.reset(token)


def is_unfilled() -> bool:
    return _unfilled.get()
