"""Labels with words beside the class: the vector of each is a row of a table, and they are added.

Labels are int64 `[B]`, or `[B, 1 + W]` for a prior with words: the class and then words in any
order, -1 for none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["no_class_like", "summed_rows"]


def summed_rows(rows_of: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    """`[..., B, C]`: the row of each class plus those of its words, added from left to right.

    Args:
        rows_of: Gives the rows `[..., *shape, C]` of labels of any shape.
    """
    if labels.dim() == 1:
        return rows_of(labels)
    rows = rows_of(labels.clamp(min=0)).masked_fill((labels < 0)[..., None], 0.0)
    total, *others = rows.unbind(-2)  # 1 + W of [..., B, C]
    for words in others:
        total = total + words
    return total


def no_class_like(labels: Tensor, no_class: int) -> Tensor:
    """As many labels of the same shape, all without a class and without words."""
    bare = torch.full_like(labels, no_class)
    if labels.dim() == 2:
        bare[:, 1:] = -1
    return bare
