"""The hidden part of its class that a sample is of.

A prior with `num_subclasses` is told more than the class of a sample: one of the equal parts of the
class. Users name the class, and the part is drawn here: a function of seed and sample number, so
that all levels, batches and processes draw the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast import ops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vqvae2_fast.sampling.prior import PriorInterface

__all__ = ["subclass_labels"]

STREAM = 2**16 - 1  # of the noise; levels count from 0


def subclass_labels(
    interface: PriorInterface,
    labels: Tensor,
    samples: Tensor,
    *,
    seed: int,
    known: Sequence[Tensor | None] = (),
) -> Tensor:
    """The labels that a prior is given, int64 `[B]`.

    Args:
        labels: int64 `[B]`. Labels of classes become those of parts, each equally likely; others
            stay, wrong ones too, which the draw refuses.
        samples: int64 `[B]`, the numbers of the samples.
        known: Code maps `[B, h, w]` with -1 where a code is to be drawn. Samples with a known code
            keep the label of their class: which part those codes are of is not known.
    """
    parts = interface.num_subclasses
    if not parts:
        return labels
    position = torch.zeros(1, dtype=torch.int64, device=samples.device)
    noise = ops.gumbel_noise(samples, position, parts, seed=seed, stream=STREAM)  # [B, 1, parts]
    part = noise[:, 0].argmax(1).to(labels.device)
    free = (labels >= 0) & (labels < interface.num_classes)
    for codes in known:
        if codes is not None:
            free &= (codes < 0).flatten(1).all(1).to(labels.device)
    return torch.where(free, interface.label_layout.of_part(labels, part), labels)
