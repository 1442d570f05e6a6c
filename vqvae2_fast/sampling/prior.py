"""What sampling needs to know of a prior.

Every `Prior` can be drawn from; registering one function adds a type that is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from vqvae2_fast.models.label_layout import LabelLayout
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.modules.compiled import without_compiler
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.bounds import check_plan, check_weights
from vqvae2_fast.sampling.fingerprint import fingerprint
from vqvae2_fast.sampling.kept import Kept
from vqvae2_fast.sampling.request import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.sampling.plan import SamplingPlan

__all__ = [
    "NO_PLAN",
    "NoPlanError",
    "PriorInterface",
    "altered_forward",
    "checked_interface",
    "checked_prior",
    "interface_of",
    "interface_of_prior",
    "plan_of",
]

NO_PLAN = "this type of prior has no sampling plan, from which all other engines draw"


class NoPlanError(ValueError):
    """A prior from which only engine `reference` can draw, though its type has a plan."""


@dataclass(frozen=True)
class PriorInterface:
    """A prior as sampling sees it.

    Args:
        size: (H, W) of its code map.
        num_embeddings: K.
        num_classes: 0 for none; label `num_classes` is "no class".
        condition_sizes: Sizes of the maps that condition it, coarse to fine.
        logits: (codes `[B, h, W]`, maps, labels) -> `[B, K, h, W]`: the full forward pass on the
            first h rows. It defines the prior.
        num_subclasses, num_variants: As in `PriorConfig`.
        plan: Makes the plan from the current weights; None if only engine `reference` can draw.
        why_no_plan: Why it is None.
    """

    size: tuple[int, int]
    num_embeddings: int
    num_classes: int
    condition_sizes: tuple[tuple[int, int], ...]
    logits: Callable[[Tensor, list[Tensor], Tensor | None], Tensor]
    plan: Callable[[], SamplingPlan] | None = None
    num_subclasses: int = 0
    num_variants: int = 0
    why_no_plan: str = NO_PLAN

    @property
    def label_layout(self) -> LabelLayout:
        return LabelLayout(self.num_classes, self.num_subclasses, self.num_variants)

    @property
    def num_labels(self) -> int:
        """Labels that the prior takes, 0 without classes."""
        return self.label_layout.count

    def new_plan(self) -> SamplingPlan:
        """The plan of the current weights.

        Raises:
            EngineError: The prior has none.
        """
        return self.plan_maker()()

    def plan_maker(self) -> Callable[[], SamplingPlan]:
        """`plan`. Raises EngineError if the prior has none."""
        if self.plan is None:
            raise EngineError(f"prior: {self.why_no_plan}; expected engine='reference'.")
        return self.plan


@singledispatch
def interface_of(prior: object) -> PriorInterface:
    """The interface of a prior; `interface_of.register(type, function)` adds a type.

    Raises:
        TypeError: No function is registered for the prior's type.
    """
    original = without_compiler(prior)
    if original is not prior:
        return interface_of(original)
    raise _unknown("sample_codes", prior)


def checked_interface(where: str, prior: object) -> PriorInterface:
    """`interface_of`, with an error in the name of `where`."""
    original = without_compiler(prior)
    if interface_of.dispatch(type(original)) is interface_of.dispatch(object):
        raise _unknown(where, original)
    return interface_of(original)


def _unknown(where: str, prior: object) -> TypeError:
    remedy = (
        "Pass one of pipeline.priors."
        if hasattr(prior, "priors")
        else "Register its type: vqvae2_fast.sampling.interface_of.register(type, function)."
    )
    return TypeError(f"{where}: do not know how to draw from a {type(prior).__name__}. {remedy}")


def altered_forward(prior: nn.Module, kind: type[nn.Module]) -> str | None:
    """How the forward of a prior of this kind was changed, of which its plan knows nothing: by a
    subclass, a hook, or a forward in its place. None if it was not."""
    own = type(prior)
    for name in ("forward", "logits"):
        if getattr(own, name, None) is not getattr(kind, name, None):
            return f"{own.__name__} replaces {kind.__name__}.{name}"
    for module in prior.modules():
        replaced = "forward" in vars(module)
        if replaced or module._forward_hooks or module._forward_pre_hooks:
            path = next(path for path, other in prior.named_modules() if other is module)
            whose = f"its module {path}" if path else "it"
            return f"{whose} has {'another forward' if replaced else 'a hook on its forward'}"
    return None


@interface_of.register(Prior)
def interface_of_prior(
    prior: Prior, plan: Callable[[], SamplingPlan] | None = None, why_no_plan: str = NO_PLAN
) -> PriorInterface:
    """The interface of a `Prior`."""
    config = prior.config

    def logits(codes: Tensor, maps: list[Tensor], labels: Tensor | None) -> Tensor:
        result: Tensor = prior(codes, maps, labels)
        return result

    return PriorInterface(
        config.size,
        config.num_embeddings,
        config.num_classes,
        config.condition_sizes,
        logits,
        plan,
        config.num_subclasses,
        config.num_variants,
        why_no_plan,
    )


_plans: Kept[nn.Module, SamplingPlan] = Kept(capacity=1)


def plan_of(prior: nn.Module, interface: PriorInterface) -> SamplingPlan:
    """The prior's plan, folded again only if its weights have changed since the last call.

    It is a second copy of the weights and is kept for as long as the prior lives. Raises as
    `PriorInterface.new_plan`, and ValueError if a weight is beyond `SAMPLING_BOUND` or NaN.
    """
    make = interface.plan_maker()  # before looking for one that was kept: the prior may be altered
    # In less than half the time of parameters() and buffers().
    modules = list(prior.modules())
    held = [of for module in modules for of in (module._parameters, module._buffers)]
    tensors = [tensor for of in held for tensor in of.values() if tensor is not None]

    def fold() -> SamplingPlan:
        check_weights(tensors)
        with torch.inference_mode(), _native.default_floats():
            plan = make()
            check_plan(plan)
        return plan

    if any(isinstance(module, ParametrizationList) for module in modules):
        return fold()  # its values may depend on more than its tensors
    return _plans.get(prior, fingerprint(tensors), fold)


def checked_prior(prior: nn.Module, interface: PriorInterface) -> nn.Module:
    """The prior, after the checks of its weights by which other engines draw or refuse.

    Raises:
        ValueError: As `plan_of`.
    """
    try:
        if interface.plan is not None:
            plan_of(prior, interface)
            return prior
    except NoPlanError:
        pass
    check_weights([*prior.parameters(), *prior.buffers()])
    return prior
