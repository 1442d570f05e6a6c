"""Drawing a series of samples into a folder, batch by batch."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqvae2_fast.data.pixels import pictures
from vqvae2_fast.sampling.batches import codes_per_image, draw_batch
from vqvae2_fast.sampling.candidates import BATCH_CODES
from vqvae2_fast.sampling.prior import interface_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vqvae2_fast.console.progress import Progress, Task
    from vqvae2_fast.data.sample_folder import SampleFolder
    from vqvae2_fast.sampling.pipeline import Pipeline
    from vqvae2_fast.sampling.series import SampleSeries

__all__ = ["Batches", "best_batch_size", "draw_into"]

_BATCH_IMAGES = 128


def best_batch_size(pipeline: Pipeline) -> int:
    """How many images to draw at a time."""
    return max(1, min(_BATCH_IMAGES, BATCH_CODES // codes_per_image(pipeline)))


@dataclass(frozen=True)
class Batches:
    """One process's batches of consecutive samples; there may be billions of samples.

    Args:
        missing: The samples to draw, ascending; whole groups.
        size: Most samples of a batch, which holds whole groups, and at least one.
        group: How many samples are drawn and judged together.
        rank, count: The process's number and how many there are. Batches go to them in turn.
    """

    missing: Sequence[range]
    size: int
    group: int = 1
    rank: int = 0
    count: int = 1

    def __iter__(self) -> Iterator[range]:
        for starts, stop in self._starts():
            for start in starts:
                yield range(start, min(start + self._whole, stop))

    @property
    def num_samples(self) -> int:
        """Samples of all batches together."""
        return sum(
            (len(starts) - 1) * self._whole + min(self._whole, stop - starts[-1])
            for starts, stop in self._starts()
            if starts
        )

    @property
    def _whole(self) -> int:
        """Samples per batch, in whole groups."""
        return max(self.group, self.size // self.group * self.group)

    def _starts(self) -> Iterator[tuple[range, int]]:
        """Where this process's batches start in each range, and where the range ends."""
        before = 0  # batches of all processes
        for samples in self.missing:
            first = samples.start + (self.rank - before) % self.count * self._whole
            yield range(first, samples.stop, self._whole * self.count), samples.stop
            before += -(-len(samples) // self._whole)


def draw_into(
    folder: SampleFolder,
    series: SampleSeries,
    batches: Batches,
    progress: Progress,
    *,
    before: int = 0,
    after_row: Callable[[int], None] = lambda _: None,
) -> None:
    """Draw batches of a series into a folder.

    Args:
        before: Samples that are in the folder already, to report progress.
        after_row: Called after each row of each map with the number of samples in the folder. If
            it raises, nothing of the current batch is written.
    """
    wanted = batches.num_samples
    if not wanted:
        return
    each = codes_per_image(series.pipeline)
    with progress.task("sample", (before + wanted) * each, before * each) as task:
        pace = _Pace(series.pipeline, task, before, before + wanted)
        for samples in batches:

            def drawn_row(level: int, row: int, rows: int, size: int = len(samples)) -> None:
                pace.update(size, level, row / rows)
                after_row(pace.images)

            drawn = draw_batch(
                series.pipeline,
                samples,
                series.settings,
                progress=drawn_row,
                **series.batch(samples),
            )
            kept, probabilities = series.judged(drawn)
            images = [
                image if keep else None
                for image, keep in zip(pictures(drawn.images), kept, strict=True)
            ]
            folder.add(samples, images, series.rows(drawn, probabilities))
            pace.images += len(samples)
            pace.update(0, 0, 0.0)


class _Pace:
    """How far the drawing has come, and how fast: `images` of `total` are written."""

    def __init__(self, pipeline: Pipeline, task: Task, images: int, total: int) -> None:
        self.images, self.total = images, total
        self._sizes = [math.prod(interface_of(prior).size) for prior in pipeline.priors]
        self._task, self._first, self._start = task, images, time.monotonic()

    def update(self, batch: int, level: int, share: float) -> None:
        """Record that this share of a level's codes is drawn for a batch of this size."""
        each = sum(self._sizes)
        codes = self.images * each
        codes += int(batch * (sum(self._sizes[:level]) + self._sizes[level] * share))
        rate = (codes - self._first * each) / max(1e-9, time.monotonic() - self._start)
        self._task.update(
            codes,
            f"{self.images}/{self.total} images  {rate:,.0f} codes/s  {rate / each:.3g} images/s",
        )
