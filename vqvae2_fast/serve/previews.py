"""Images of what is drawn so far, for clients that watch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.serve.images import as_png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vqvae2_fast.sampling import Pipeline
    from vqvae2_fast.serve.jobs import Event, Job, Slot

__all__ = ["Previews"]

_SECONDS = 0.1  # between two previews; decoding must not hold up the drawing


class Previews:
    """The previews of a batch at a level, in which some slots may want them."""

    def __init__(self, pipeline: Pipeline, level: int, slots: Sequence[Slot]) -> None:
        self._vqvae, priors = pipeline.networks()
        self._slots, self._level = slots, level
        self._wanted = [n for n, slot in enumerate(slots) if slot.job.order.previews]
        self._last = time.monotonic()
        sizes = [interface_of(prior).size for prior in priors]
        self._maps = [
            torch.full((len(slots), *size), -1, dtype=torch.int64, device="cpu")
            for size in sizes[level:]
        ]

    def after(self, indices: Sequence[int], row: int, codes: Tensor) -> list[tuple[Job, Event]]:
        """The previews that are due after a row of some slots."""
        if not self._wanted:
            return []
        own = self._maps[0]
        own[list(indices), row] = codes.cpu()
        if time.monotonic() - self._last < _SECONDS and row + 1 < own.shape[1]:
            return []
        if row + 1 == own.shape[1] and len(self._maps) == 1:
            return []  # The image itself follows.
        shown = [n for n in self._wanted if n in indices and not self._slots[n].job.cancelled]
        if not shown:
            return []
        coarser = [
            torch.stack([self._slots[n].maps[level] for n in shown]) for level in range(self._level)
        ]
        device = device_of(self._vqvae)
        maps = [*coarser, *(maps[shown] for maps in self._maps)]
        images = self._vqvae.decode_partly([codes.to(device) for codes in maps]).clamp(-1, 1)
        self._last = time.monotonic()
        return [
            (
                self._slots[n].job,
                ("preview", {"index": self._slots[n].index, "png": as_png(image)}),
            )
            for n, image in zip(shown, images, strict=True)
        ]
