"""What sampling needs to know of a prior.

Every `Prior` can be drawn from; registering one function adds a type that is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, singledispatch
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from vqvae2_fast.models.label_layout import LabelLayout
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.modules.as_made import UNREAD
from vqvae2_fast.modules.contexts import without_compiler
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.bounds import ActivationHook, check_plan, check_weights
from vqvae2_fast.sampling.kept import made_of, tensors_of
from vqvae2_fast.sampling.request import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from vqvae2_fast.modules.as_made import LayerAsMade
    from vqvae2_fast.sampling.plan import SamplingPlan

__all__ = [
    "NO_PLAN",
    "PriorInterface",
    "alteration",
    "check_prior",
    "checked_interface",
    "from_plan",
    "interface_of",
    "interface_of_prior",
    "made_from",
    "plan_of",
]

Value = TypeVar("Value")

NO_PLAN = "this type of prior has no sampling plan, from which all other engines draw"


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
        plan: Makes the plan from the current weights, partly in their own memory; None if only
            engine `reference` can draw.
        altered: Says how the prior is not the one that the plan describes, if it is not.
        num_subclasses, num_variants, num_words: As in `PriorConfig`.
    """

    size: tuple[int, int]
    num_embeddings: int
    num_classes: int
    condition_sizes: tuple[tuple[int, int], ...]
    logits: Callable[[Tensor, list[Tensor], Tensor | None], Tensor]
    plan: Callable[[], SamplingPlan] | None = None
    altered: Callable[[], str | None] = lambda: None
    num_subclasses: int = 0
    num_variants: int = 0
    num_words: int = 0

    @property
    def label_layout(self) -> LabelLayout:
        return LabelLayout(self.num_classes, self.num_subclasses, self.num_variants, self.num_words)

    @property
    def num_labels(self) -> int:
        """Labels that the prior takes, 0 without classes."""
        return self.label_layout.count

    @cached_property
    def why_no_plan(self) -> str:
        """Why only engine `reference` can draw; empty if others can."""
        if self.plan is None:
            return NO_PLAN
        altered = self.altered()
        return f"{altered}, which no plan knows of" if altered else ""

    def new_plan(self) -> SamplingPlan:
        """The plan of the current weights, partly in their own memory.

        Raises:
            EngineError: The prior has none.
        """
        if self.why_no_plan or self.plan is None:
            raise EngineError(f"prior: {self.why_no_plan}; expected engine='reference'.")
        return self.plan()


@singledispatch
def interface_of(prior: object) -> PriorInterface:
    """The interface of a prior; `interface_of.register(type, function)` adds a type.

    Raises:
        TypeError: No function is registered for the prior's type.
    """
    original = without_compiler(prior)
    if original is not prior:
        return interface_of(original)
    raise _unknown(prior)


def checked_interface(prior: object) -> PriorInterface:
    """`interface_of`, which refuses a type that no function is registered for."""
    original = without_compiler(prior)
    if interface_of.dispatch(type(original)) is interface_of.dispatch(object):
        raise _unknown(original)
    return interface_of(original)


def _unknown(prior: object) -> TypeError:
    remedy = (
        "Pass one of pipeline.priors."
        if hasattr(prior, "priors")
        else "Register its type: vqvae2_fast.sampling.interface_of.register(type, function)."
    )
    return TypeError(f"do not know how to draw from a {type(prior).__name__}. {remedy}")


# What a subclass may define without any effect on a draw, beside special methods.
_OF_TRAINING = {"extra_repr", "load_state_dict", "loss", "mean_nats", "segments", "state_dict"}
_CALLS = {"__call__", "__getattr__", "__getattribute__"}


def alteration(prior: nn.Module, layers: list[LayerAsMade]) -> str | None:
    """How a prior was changed in a way of which its plan knows nothing: a layer of another type, a
    hook, a parametrization, another forward or setting. None if it was not.

    Args:
        layers: The modules that its plan knows how to read: `layers_as_made` of its type.
    """
    left: list[nn.Module] = [prior]
    for path, kind, names, settings, has in layers:
        module = left.pop()
        own, found = type(module), vars(module)
        children, parameters = module._modules, module._parameters
        change = None
        if "parametrizations" in children:
            change = "is parametrized"
        elif own is not kind and not issubclass(own, kind):
            change = f"is a {own.__name__}, not a {kind.__name__}"
        elif own is not kind and (replaced := _replaced(own, kind)):
            return f"{own.__name__} replaces {kind.__name__}.{replaced}"
        elif _is_hooked(module):
            change = "has a hook on its forward"
        elif len(has) != len(parameters) + len(children):
            change = "has other layers or weights"
        else:
            for name, is_there in has:
                found_there = parameters.get(name, children.get(name)) is not None
                if found_there != is_there and name != "weight_g":  # plans are made without it too
                    change = f"has another {name}"
            for name, value in settings:
                if name not in found or found[name] != value:
                    change = f"has another {name}: {found.get(name)!r}, not {value!r}"
            if found.keys() != names:
                for name in found.keys() - names - UNREAD:
                    if callable(getattr(kind, name, None)):
                        change = f"has another {name}"
        if change is not None:
            return f"its module {path} {change}" if path else f"it {change}"
        if children:
            left += [child for child in reversed(children.values()) if child is not None]
    return None


def _is_hooked(module: nn.Module) -> bool:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not isinstance(hook, ActivationHook) for hook in hooks)


def _replaced(own: type[nn.Module], kind: type[nn.Module]) -> str | None:
    """What a subclass replaces of the methods that draw."""
    for base in own.__mro__[: own.__mro__.index(kind)]:
        for name in vars(base):
            harmless = name.startswith("__") and name not in _CALLS
            if hasattr(kind, name) and not harmless and name not in _OF_TRAINING:
                return name
    return None


@interface_of.register(Prior)
def interface_of_prior(
    prior: Prior,
    plan: Callable[[], SamplingPlan] | None = None,
    altered: Callable[[], str | None] = lambda: None,
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
        altered,
        config.num_subclasses,
        config.num_variants,
        config.num_words,
    )


def made_from(
    prior: nn.Module,
    interface: PriorInterface,
    form: Hashable,
    make: Callable[[SamplingPlan, nn.Module], Value],
) -> Value:
    """What `make` gives for the plan of a prior with its weights as they are now, kept as
    `made_of` says.

    Args:
        make: Called with the plan, and with the copy of the prior that it was made of.

    Raises:
        EngineError: The prior has no plan.
        ValueError: A weight is beyond `SAMPLING_BOUND` or NaN.
        RuntimeError: As `made_of`.
    """
    if interface.why_no_plan:  # before looking for what was kept: the prior may be altered
        interface.new_plan()
    return made_of(prior, form, from_plan(make))


def from_plan(make: Callable[[SamplingPlan, nn.Module], Value]) -> Callable[[nn.Module], Value]:
    """For `made_of`: `make`, called with the plan of the copy too."""

    def made(copy: nn.Module) -> Value:
        check_weights(tensors_of(copy))
        with torch.inference_mode(), _native.default_floats():
            plan = interface_of(copy).new_plan()
            check_plan(plan)
            return make(plan, copy)

    return made


def plan_of(prior: nn.Module, interface: PriorInterface) -> SamplingPlan:
    """The prior's plan, in memory of its own, folded again only if its weights have changed since
    the last call. Raises as `made_from`."""
    return made_from(prior, interface, "plan", lambda plan, _: plan)


def check_prior(prior: nn.Module, interface: PriorInterface) -> None:
    """The checks of a prior's weights by which all engines draw or refuse.

    Raises:
        ValueError: As `made_from`.
    """
    if interface.why_no_plan:
        check_weights(tensors_of(prior))
    else:
        made_from(prior, interface, "checked", lambda *_: None)
