"""What sampling asks of a prior. A type of prior is made known by registering one function."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.sampling.plan import SamplingPlan

__all__ = ["PriorInterface", "interface_of", "plan_of"]


@dataclass(frozen=True)
class PriorInterface:
    """A prior, seen from sampling.

    Args:
        size: (H, W) of its code map.
        num_embeddings: K.
        num_classes: 0 for none; label `num_classes` is "no class".
        condition_sizes: Sizes of the maps that condition it, coarse to fine.
        logits: (codes `[B, h, W]`, maps, labels) -> `[B, K, h, W]`: the full forward on the first h
            rows. It defines the prior.
        plan: Builds the plan from the weights as they are now.
    """

    size: tuple[int, int]
    num_embeddings: int
    num_classes: int
    condition_sizes: tuple[tuple[int, int], ...]
    logits: Callable[[Tensor, list[Tensor], Tensor | None], Tensor]
    plan: Callable[[], SamplingPlan]


@singledispatch
def interface_of(prior: object) -> PriorInterface:
    """The interface of a prior; `interface_of.register(type, function)` adds a type.

    Raises:
        TypeError: No function is registered for the prior's type.
    """
    raise TypeError(
        f"sample_codes: do not know how to draw from a {type(prior).__name__}. Register its type: "
        "vqvae2_fast.sampling.interface_of.register(type, function)."
    )


# Plans by prior, each with the fingerprint of the weights that it was folded from.
_plans: weakref.WeakKeyDictionary[nn.Module, tuple[list[int], SamplingPlan]] = (
    weakref.WeakKeyDictionary()
)


def plan_of(prior: nn.Module, interface: PriorInterface) -> SamplingPlan:
    """The prior's plan, folded again only if its weights have changed since the last call.

    It is kept as long as the prior is: a second copy of the weights.
    """
    fingerprint = _fingerprint(prior)
    cached = _plans.get(prior)
    if cached is None or cached[0] != fingerprint:
        with torch.inference_mode():
            cached = _plans[prior] = (fingerprint, interface.plan())
    return cached[1]


def _fingerprint(prior: nn.Module) -> list[int]:
    """Where each tensor of the prior lies, and the sum of its bits.

    Autograd's version counters would be cheaper but miss writes through `.data`. Reads the weights
    once; on a GPU this is a synchronisation point.
    """
    tensors = [tensor.detach() for tensor in (*prior.parameters(), *prior.buffers())]
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [t.contiguous().view(-1).view(integers[t.element_size()]).sum() for t in tensors]
    return [tensor.data_ptr() for tensor in tensors] + torch.stack(sums).tolist()
