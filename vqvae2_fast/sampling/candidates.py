"""Draws several fillings of a map's holes, and takes one by how likely it makes the known codes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.models.code_checks import check_labels, check_map
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.ops._checks import checked_integer
from vqvae2_fast.ops.gumbel_noise.op import (
    PURPOSE_CANDIDATE,
    gumbel_from_words,
    random_words,
)
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.request import Drawn
from vqvae2_fast.sampling.sampler import check_not_capturing, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from vqvae2_fast.sampling.settings import DrawSettings

__all__ = ["BATCH_CODES", "draw_candidates", "take_candidates"]

# The codes of a batch: 160 maps of 16×16. A larger batch gains the engine little.
BATCH_CODES = 40_960


def draw_candidates(
    prior: nn.Module,
    batch_size: int,
    settings: DrawSettings,
    candidates: int,
    *,
    condition: Sequence[Tensor],
    labels: Tensor | None,
    known: Tensor | None,
    first_sample: int,
    stream: int,
    progress: Callable[[int, int], None] | None = None,
) -> Drawn:
    """Sampling-importance-resampling of the free codes of each map (Rubin, 1987).

    A candidate is one draw of all free codes, each given the codes before it. It is taken with
    probability ∝ w, the product of p(code | codes before it) over the known codes that come after
    the first free one. With more candidates, what is taken approaches a draw from p(free codes |
    all known codes). The weights are those of the raw model: without guidance, temperature and
    filters.

    Candidate c of m of sample n is drawn with the noise of sample n·m + c, so with one candidate
    this is `draw`. The choice has noise of its own.

    Args:
        candidates: m, at least 1.
        known: int64 `[B, H, W]`, -1 where a code is to be drawn; None draws all.
        condition, labels, first_sample, stream, progress: As in `draw`. `progress` counts
            the rows of all batches of candidates.

    Returns:
        The codes that were taken, the log-probability of each, and `effective`: the effective
        number of candidates, (Σ w)² / Σ w², float64 `[B]`, from 1 to m.

    Raises:
        ValueError, TypeError: As `sample_codes`, or candidates out of range.
    """
    interface = interface_of(prior)
    most = 2**32 // (first_sample + batch_size)  # the noise has 32 bits for a sample's number
    candidates = checked_integer("candidates", candidates, 1, most)
    check_labels(
        labels, interface.num_classes, batch_size, interface.num_labels, interface.num_words
    )
    device = device_of(prior)
    check_not_capturing(device)
    if known is None:
        known = torch.full((batch_size, *interface.size), -1, device="cpu", dtype=torch.int64)
    shape = (batch_size, *interface.size)
    check_map("known", known, shape, interface.num_embeddings, lowest=-1)
    known = known.to(device)
    free = known < 0
    # Without a free code all candidates are the same.
    each = candidates if free.any() else 1
    rows = torch.arange(batch_size, device=device).repeat_interleave(each)
    size = max(1, BATCH_CODES // math.prod(interface.size))
    drawn: list[Drawn] = []
    for begun in range(0, len(rows), size):
        part = rows[begun : begun + size]

        def row_drawn(row: int, height: int, begun: int = begun) -> None:
            if progress is not None:
                progress(begun // size * height + row, -(-len(rows) // size) * height)

        drawn.append(
            draw(
                prior,
                len(part),
                settings,
                condition=[maps[part] for maps in condition],
                labels=None if labels is None else labels.to(device)[part],
                known=known[part],
                first_sample=first_sample * each + begun,
                stream=stream,
                return_log_prob=True,
                progress=row_drawn,
            )
        )
    codes = torch.cat([one.codes for one in drawn])
    log_prob = torch.cat([one.log_prob for one in drawn if one.log_prob is not None])
    taken, effective = take_candidates(
        log_prob.unflatten(0, (batch_size, each)), known, settings.seed, first_sample, stream
    )
    picked = torch.arange(batch_size, device=device) * each + taken.to(device)
    return Drawn(codes[picked], log_prob[picked], effective=effective * (candidates // each))


def take_candidates(
    log_prob: Tensor, known: Tensor, seed: int, first_sample: int, stream: int
) -> tuple[Tensor, Tensor]:
    """One candidate of each map, as `draw_candidates` takes it, and the effective number of them.

    Like the draw of a code it is the best after adding Gumbel noise, the lowest index on ties.

    Args:
        log_prob: Of the codes of each candidate, float32 `[B, m, H, W]`.
        known: int64 `[B, H, W]`, -1 where codes were drawn.

    Returns:
        int64 `[B]` in 0..m-1 and float64 `[B]`, on the CPU.
    """
    batch, candidates = log_prob.shape[:2]
    free = known < 0
    follows = ~free & (free.flatten(1).cumsum(1) > 0).view_as(free)  # [B, H, W]
    counted = log_prob.masked_fill(~follows[:, None], 0).flatten(0, 1).flatten(1)
    # fsum gives the same number in any batch; torch.sum might not.
    sums = [math.fsum(one) for one in counted.tolist()]
    log_weights = torch.tensor(sums, dtype=torch.float64, device="cpu").view(batch, candidates)
    samples = first_sample + torch.arange(batch, device="cpu")[:, None]
    words = random_words(
        torch.arange(candidates, device="cpu")[None],
        torch.zeros_like(samples),
        samples,
        seed=seed,
        stream=stream,
        purpose=PURPOSE_CANDIDATE,
    )
    taken = (log_weights + gumbel_from_words(words).double()).argmax(1)
    return taken, log_weights.softmax(1).square().sum(1).reciprocal()
