"""Which samples of a step's batch the present calls see, where these are a part of it.

A training step may be cut into micro-batches and shared by processes. What is random in it follows
the number of a sample in the whole batch, so that the cut changes nothing. Who cuts says so here.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["BatchPart", "batch_part", "dropout_seed", "present_part", "uniform_of_part"]

# Seeds of dropout are drawn below this; any int64 would do.
_SEED_END = 2**62


@dataclass(frozen=True)
class BatchPart:
    """Samples first, first + 1, ... of a batch of `total`."""

    first: int
    total: int


# Of the process, not of a thread: autograd may recompute a forward in a thread of its own.
_part: BatchPart | None = None


def present_part() -> BatchPart | None:
    """The part that the present calls see; None where nobody has said."""
    return _part


@contextmanager
def batch_part(part: BatchPart) -> Iterator[None]:
    """Inside, calls see this part of a batch."""
    global _part
    before, _part = _part, part
    try:
        yield
    finally:
        _part = before


def dropout_seed(device: torch.device | None = None) -> Tensor:
    """A seed for `dropout_mask`, drawn from torch's generator, so `torch.manual_seed` fixes it.

    0-d, or `[2]` with the number of the first sample inside `batch_part`.
    """
    seed = torch.randint(_SEED_END, (), device=device)
    if _part is None or not _part.first:
        return seed
    return torch.stack([seed, torch.full_like(seed, _part.first)])


def uniform_of_part(samples: int, device: torch.device) -> Tensor:
    """One number in [0, 1) for each sample of the present part, by torch's generator: `[B]`."""
    if _part is None:
        return torch.rand(samples, device=device, dtype=torch.float32)
    # As many as for the whole batch, so that the generator is left the same for every part.
    return torch.rand(_part.total, device=device, dtype=torch.float32)[
        _part.first : _part.first + samples
    ]
