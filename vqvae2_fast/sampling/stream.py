"""Drawing many images batch by batch: what a loop needs that writes them, or measures them.

Sample n of a seed is the same in any batch, to the last bit with engine `cpu`: its codes because
the engine sums in one order, its pixels because images are decoded one at a time. PyTorch's
convolutions round differently in another batch, enough to move two bytes of 128 emoji.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.sampling.pipeline import decoded, sample_levels
from vqvae2_fast.sampling.prior import interface_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["DrawSettings", "SampleBatch", "codes_per_image", "draw_batch", "stream_images"]


@dataclass(frozen=True)
class DrawSettings:
    """How to draw; one value, or one per level, coarse to fine. See `sample_codes` for each."""

    seed: int = 0
    temperature: float | Sequence[float] = 1.0
    top_k: int | None | Sequence[int | None] = None
    top_p: float | None | Sequence[float | None] = None
    guidance_scale: float | Sequence[float] = 1.0
    engine: str = "auto"


@dataclass(frozen=True)
class SampleBatch:
    """Samples `first_sample`, `first_sample + 1`, ... of a seed.

    Args:
        images: float `[B, C, H, W]` in [-1, 1].
        codes: int64 `[B, h, w]` per level, coarse to fine.
        log_prob: Per sample, then per level: the log-probability of its code map under the raw
            model (no guidance, temperature, filters), known codes with it. Nats.
        labels: int64 `[B]`, None without classes.
    """

    first_sample: int
    images: Tensor
    codes: list[Tensor]
    log_prob: list[list[float]]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)


def codes_per_image(pipeline: Pipeline) -> int:
    """Codes of all levels together."""
    return sum(math.prod(interface_of(prior).size) for prior in pipeline.priors)


def draw_batch(
    pipeline: Pipeline,
    samples: range,
    settings: DrawSettings,
    *,
    labels: Tensor | None = None,
    known: Sequence[Tensor | None] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> SampleBatch:
    """Draw consecutive samples; `labels` and `known` hold a row for each of them.

    Args, Raises: As `sample_images`.
    """
    drawn = sample_levels(
        pipeline,
        len(samples),
        labels=labels,
        first_sample=samples.start,
        known=known,
        return_log_prob=True,
        progress=progress,
        **asdict(settings),
    )
    assert isinstance(drawn, tuple)
    codes, log_prob = drawn
    images = [decoded(pipeline, [maps[i : i + 1] for maps in codes]) for i in range(len(samples))]
    # fsum: the same number in any batch, as torch.sum need not be.
    per_level = [[math.fsum(row) for row in level.flatten(1).tolist()] for level in log_prob]
    return SampleBatch(
        samples.start,
        torch.cat(images),
        codes,
        [list(levels) for levels in zip(*per_level, strict=True)],
        labels,
    )


def stream_images(
    pipeline: Pipeline,
    count: int,
    *,
    batch_size: int = 64,
    labels: Tensor | None = None,
    first_sample: int = 0,
    known: Sequence[Tensor | None] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    **settings: Any,
) -> Iterator[SampleBatch]:
    """Draw many images, a batch at a time; memory is that of one batch.

        for batch in stream_images(pipeline, 50_000, labels=torch.arange(50_000) % 10, seed=1):
            statistics.update(batch.images)

    Args:
        count: Images in all; the last batch may be smaller.
        labels: int64 `[count]` for priors with classes.
        known: Per level int64 `[count, h, w]` with -1 where a code is to be drawn, or None.
        progress: Called with (level, rows done, rows of its map), anew in each batch.
        settings: `seed`, `temperature`, `top_k`, `top_p`, `guidance_scale`, `engine`: as in
            `sample_images`.

    Yields:
        Samples first_sample, ..., first_sample + count - 1 in order.

    Raises:
        ValueError, TypeError: As `sample_images`; before the first batch if a size does not fit.
    """
    if count < 0 or batch_size < 1:
        raise ValueError(
            f"stream_images: expected count >= 0 and batch_size >= 1, got {count} and {batch_size}."
        )
    for name, rows in (("labels", labels), *(("known", maps) for maps in known or ())):
        if rows is not None and len(rows) != count:
            raise ValueError(
                f"stream_images: expected {name} of {count} rows, one a sample, got {len(rows)}."
            )
    return _batches(
        pipeline, count, batch_size, labels, first_sample, known, progress, DrawSettings(**settings)
    )


def _batches(
    pipeline: Pipeline,
    count: int,
    batch_size: int,
    labels: Tensor | None,
    first_sample: int,
    known: Sequence[Tensor | None] | None,
    progress: Callable[[int, int, int], None] | None,
    settings: DrawSettings,
) -> Iterator[SampleBatch]:
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        yield draw_batch(
            pipeline,
            range(first_sample + start, first_sample + rows.stop),
            settings,
            labels=None if labels is None else labels[rows],
            known=known and [None if maps is None else maps[rows] for maps in known],
            progress=progress,
        )
