"""Samples of several callers drawn together: each has its own seed, number, settings and label.

A sample's codes do not depend on its batch, so they are those of a draw of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.sampler import draw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from vqvae2_fast.sampling.settings import DrawSettings

__all__ = ["SampleRequest", "draw_together"]


@dataclass(frozen=True)
class SampleRequest:
    """A map of one sample that is to be drawn.

    Args:
        settings: Of this level, with the seed.
        sample: The sample's number.
        condition: Maps of the coarser levels, int64 `[h, w]`, coarse to fine.
        label: None for "no class".
        known: int64 `[H, W]`, -1 where a code is to be drawn; None draws all.
    """

    settings: DrawSettings
    sample: int
    condition: Sequence[Tensor] = ()
    label: int | None = None
    known: Tensor | None = None


def draw_together(
    prior: nn.Module,
    requests: Sequence[SampleRequest],
    stream: int,
    on_row: Callable[[Sequence[int], int, Tensor], None],
) -> list[tuple[Tensor, Tensor]]:
    """The map of each request, int64 `[H, W]`, and the log-probability of each of its codes.

    Requests whose settings differ only in the seed are drawn in one batch.

    Args:
        stream: The noise stream: the number of the level.
        on_row: Called with (indices of requests, row, codes int64 `[len(indices), W]`) after each
            row; an exception that it raises ends the draw.

    Raises:
        ValueError, TypeError: As `sample_codes`.
    """
    drawn: dict[int, tuple[Tensor, Tensor]] = {}
    order = sorted(range(len(requests)), key=lambda n: repr(requests[n].settings.rule()))
    for _, group in groupby(order, key=lambda n: requests[n].settings.rule()):
        indices = list(group)
        found = _draw(prior, [requests[n] for n in indices], stream, indices, on_row)
        drawn |= dict(zip(indices, found, strict=True))
    return [drawn[n] for n in range(len(requests))]


def _draw(
    prior: nn.Module,
    requests: Sequence[SampleRequest],
    stream: int,
    indices: Sequence[int],
    on_row: Callable[[Sequence[int], int, Tensor], None],
) -> list[tuple[Tensor, Tensor]]:
    interface = interface_of(prior)
    settings = requests[0].settings
    labels = known = None
    if interface.num_classes:
        none = interface.num_classes
        labels = torch.tensor(
            [none if r.label is None else r.label for r in requests],
            device="cpu",
            dtype=torch.int64,
        )
    else:
        settings = replace(settings, guidance_scale=1.0)
    if any(r.known is not None for r in requests):
        free = torch.full(interface.size, -1, device="cpu", dtype=torch.int64)
        known = torch.stack([free if r.known is None else r.known for r in requests])
    rows = [((r.settings.seed + 2**63) % 2**64 - 2**63, r.sample) for r in requests]
    maps = draw(
        prior,
        len(requests),
        settings,
        condition=[
            torch.stack(level) for level in zip(*(r.condition for r in requests), strict=True)
        ],
        labels=labels,
        known=known,
        rows=torch.tensor(rows, device="cpu", dtype=torch.int64),
        stream=stream,
        return_log_prob=True,
        on_row=lambda row, codes: on_row(indices, row, codes),
    )
    assert maps.log_prob is not None
    return list(zip(maps.codes.cpu(), maps.log_prob.cpu(), strict=True))
