"""What a client has ordered, and the events by which it learns what has been drawn."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vqvae2_fast.serve.limits import too_slow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from torch import Tensor

    from vqvae2_fast.sampling import DrawSettings

__all__ = ["Event", "Job", "Order", "Slot"]

# Name and content: ("row", {...}), ("image", {...}), ("done", {...}) or ("error", Problem).
Event = tuple[str, Any]


@dataclass(frozen=True)
class Order:
    """Images of one seed and settings.

    Args:
        samples: Their numbers.
        settings: One per level, coarse to fine.
        labels: Used in turn; None for "no class".
        known: Per level int64 `[h, w]`, -1 where a code is to be drawn, or None.
        candidates: Fillings of the unknown codes to choose from, see `fill`.
        rows: Whether the client wants to see rows as they are drawn.
        previews: Whether it also wants to see images of what is drawn so far.
    """

    samples: range
    settings: tuple[DrawSettings, ...]
    labels: tuple[int | None, ...] = (None,)
    known: tuple[Tensor | None, ...] = ()
    candidates: int = 1
    rows: bool = False
    previews: bool = False

    def label(self, index: int) -> int | None:
        """The label of the image at this place."""
        return self.labels[index % len(self.labels)]


@dataclass(eq=False)
class Job:
    """An order that is being drawn. Its events are put and read in the server's loop."""

    order: Order
    cancelled: bool = False
    begun: float = field(default_factory=time.monotonic)
    saw_row: bool = False
    missing: int = 0
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.missing = len(self.order.samples)

    async def told(self, seconds: float) -> AsyncIterator[Event]:
        """The events up to "done" or "error", which comes after `seconds` at the latest.

        Whoever stops reading cancels the job.
        """
        try:
            while True:
                left = self.begun + seconds - time.monotonic()
                try:
                    event = await asyncio.wait_for(self.events.get(), left)
                except asyncio.TimeoutError:  # not yet the built-in one in Python 3.10
                    event = ("error", too_slow(seconds))
                yield event
                if event[0] in ("done", "error"):
                    return
        finally:
            self.cancelled = True


@dataclass(eq=False)
class Slot:
    """One image of a job: the maps that are drawn so far, and their log-probabilities."""

    job: Job
    index: int
    maps: list[Tensor] = field(default_factory=list)
    log_prob: list[float] = field(default_factory=list)
    effective: list[float] | None = None
    answered: bool = False
