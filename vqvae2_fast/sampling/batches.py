"""Drawing many images batch by batch, to write or to measure them.

With engine `cpu`, sample n of a seed is the same to the last bit in any batch: its codes because
the engine adds in one order, its pixels because images are decoded one at a time. PyTorch's
convolutions round differently in a batch of another size, which changed two bytes in 128 emoji.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqvae2_fast.models.code_checks import check_known
from vqvae2_fast.sampling.labels import label_tensor
from vqvae2_fast.sampling.pipeline import decoded_singly, draw_levels, num_levels_of
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.settings import level_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from vqvae2_fast.sampling.labels import Labels
    from vqvae2_fast.sampling.pipeline import Pipeline
    from vqvae2_fast.sampling.settings import DrawSettings

__all__ = ["SampleBatch", "codes_per_image", "draw_batch", "stream_images"]


@dataclass(frozen=True)
class SampleBatch:
    """Samples `first_sample`, `first_sample + 1`, ... of a seed.

    Args:
        images: float `[B, C, H, W]` in [-1, 1].
        codes: int64 `[B, h, w]` per level, coarse to fine.
        log_prob: Per sample, then per level: the log-probability of its code map, including known
            codes, under the raw model (without guidance, temperature and filters). Nats.
        labels: int64 `[B]`, with words `[B, 1 + W]`; None without classes.
        effective: Per sample, then per level: the effective number of candidates, see `fill`; empty
            without candidates.
    """

    first_sample: int
    images: Tensor
    codes: list[Tensor]
    log_prob: list[list[float]]
    labels: Tensor | None
    effective: list[list[float]]

    def __len__(self) -> int:
        return len(self.images)


def codes_per_image(pipeline: Pipeline) -> int:
    """Number of codes of all levels together."""
    return sum(math.prod(interface_of(prior).size) for prior in pipeline.priors)


def draw_batch(
    pipeline: Pipeline,
    samples: range,
    settings: Sequence[DrawSettings],
    *,
    labels: Tensor | None = None,
    known: Sequence[Tensor | None] | None = None,
    candidates: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> SampleBatch:
    """Draw consecutive samples; `labels` and `known` hold a row for each of them.

    Args:
        settings: One per level, coarse to fine, see `level_settings`.
        labels, known, progress: As in `sample_images`, with its errors.
        candidates: As in `fill`; None draws once.
    """
    drawn = draw_levels(
        pipeline,
        len(samples),
        settings,
        labels=labels,
        first_sample=samples.start,
        known=known,
        candidates=candidates,
        return_log_prob=True,
        progress=progress,
    )
    codes = [level.codes for level in drawn]
    # fsum gives the same number in any batch; torch.sum might not.
    per_level = [
        [math.fsum(row) for row in level.log_prob.flatten(1).tolist()]
        for level in drawn
        if level.log_prob is not None
    ]
    effective = [level.effective.tolist() for level in drawn if level.effective is not None]
    return SampleBatch(
        samples.start,
        decoded_singly(pipeline, codes),
        codes,
        [list(levels) for levels in zip(*per_level, strict=True)],
        labels,
        [list(levels) for levels in zip(*effective, strict=True)],
    )


def stream_images(
    pipeline: Pipeline,
    count: int,
    *,
    batch_size: int = 64,
    labels: Labels = None,
    first_sample: int = 0,
    known: Sequence[Tensor | None] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    **settings: Any,
) -> Iterator[SampleBatch]:
    """Draw many images, one batch at a time, in the memory of one batch.

        for batch in stream_images(pipeline, 50_000, labels=torch.arange(50_000) % 10, seed=1):
            statistics.update(batch.images)

    Args:
        count: Images in all; the last batch may be smaller.
        labels: One per image for priors with classes: int64 `[count]`, or a list of numbers and
            names as in `sample_images`.
        known: Per level int64 `[count, h, w]` with -1 where a code is to be drawn, or None.
        progress: Called with (level, rows done, rows of its map), from the start in each batch.
        settings: Fields of `DrawSettings`, each one value or one per level, coarse to fine; the
            seed is one for all.

    Yields:
        Samples first_sample, ..., first_sample + count - 1 in order.

    Raises:
        ValueError, TypeError: As `sample_images`; before the first batch if a size does not fit.
    """
    if count < 0 or batch_size < 1:
        raise ValueError(f"expected count >= 0 and batch_size >= 1, got {count} and {batch_size}.")
    num_levels = num_levels_of(pipeline)
    check_known(known, num_levels)
    numbers = label_tensor(labels, pipeline.num_classes, pipeline.class_names)
    for name, rows in (("labels", numbers), *(("known", maps) for maps in known or ())):
        if rows is not None and len(rows) != count:
            raise ValueError(f"expected {name} of {count} rows, one per sample, got {len(rows)}.")
    of_levels = level_settings(num_levels, **settings)

    def batches() -> Iterator[SampleBatch]:
        for start in range(0, count, batch_size):
            rows = slice(start, min(start + batch_size, count))
            yield draw_batch(
                pipeline,
                range(first_sample + start, first_sample + rows.stop),
                of_levels,
                labels=None if numbers is None else numbers[rows],
                known=known and [None if maps is None else maps[rows] for maps in known],
                progress=progress,
            )

    return batches()
