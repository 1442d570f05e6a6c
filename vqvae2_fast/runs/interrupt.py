"""Ctrl-C and SIGTERM while training: the step is finished and saved, then the run stops."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["InterruptedRun", "StopRequest", "cause", "stop_requests"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds. One ctrl-C causes several signals if a launcher such as torchrun passes it on.
_IMPATIENCE = 1.0


class InterruptedRun(KeyboardInterrupt):
    """A run stopped by a signal after a whole step, which its checkpoint holds.

    Args:
        signal_number: A command ends with exit code 128 plus this number: 130 for ctrl-C, 143 for
            SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """`number` is the number of the signal that came, or None; `since` is its time in seconds."""

    number: int | None = None
    since: float = 0.0

    def check(self, message: str) -> None:
        """Raises InterruptedRun if a signal came, with what sent it and then the message."""
        if self.number is not None:
            raise InterruptedRun(f"stopped by {cause(self.number)}; {message}", self.number)


def cause(number: int) -> str:
    """What sends a signal, for messages: Ctrl-C, or the name of the signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Records the first SIGINT or SIGTERM; ctrl-C a second later raises KeyboardInterrupt.

    Only the main thread can handle signals: in other threads nothing is recorded, and signals keep
    their effect.
    """
    request, owner = StopRequest(), os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: Any) -> None:
        if os.getpid() != owner:
            # This is a forked worker. Ctrl-C reaches it too, but it works until the run closes it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if request.number is None:
            request.number, request.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - request.since >= _IMPATIENCE:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
