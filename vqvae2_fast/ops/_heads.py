"""Several heads in one call: applies an operator for one codebook to each of `[H, K, D]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast.ops._checks import described

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["for_each_head"]


def for_each_head(
    call: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    z: Tensor,
    other: Tensor,
    name: str = "codebook",
) -> tuple[Tensor, ...]:
    """The results of `call(z[h], other[h])`, stacked over h: z `[H, ..., D]`, other `[H, ...]`."""
    heads = len(other)
    if heads == 0 or z.dim() < 2 or len(z) != heads:
        raise ValueError(
            f"expected z [H, ..., D] for {name} [H, ...] with H >= 1, got z {described(z)} "
            f"for {name} {described(other)}."
        )
    results = [call(*each) for each in zip(z.unbind(), other.unbind(), strict=True)]
    return tuple(torch.stack(each) for each in zip(*results, strict=True))
