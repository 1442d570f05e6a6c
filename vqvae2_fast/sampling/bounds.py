"""The bound on weights and activations within which no engine's sums overflow.

float32 ends at 2^128. A sum of products that passes it is infinite or NaN in one order of its terms
and finite in another, and what follows may hide it: ELU, sigmoid and softmax make numbers of -inf.
Engines add in different orders, so they would differ without a word. Hence nothing is drawn from a
prior unless, with L = 2^20,

- its weights are at most L in absolute value, also after weight normalisation (whose norms are at
  least 2^-50, so that their squares do not underflow, and factors g / ‖v‖ at most 2^70);
- at every position, so are the activations that are multiplied: the outputs of ELUs, the inputs of
  `merge`, the features of the condition, and the keys of the attention.

Then no order of terms overflows. With at most 2^15 inputs of a matrix, 2^7 layers and heads of 2^9
channels, sums over activations are below 2^15 · L · L = 2^55; sums of the residual stream below
2^62; queries and values, whose inputs are such sums, below 2^15 · L · 2^62 = 2^97; their products
with keys below 2^9 · 2^97 · L = 2^126. Attended values beyond L are stopped at their ELU, merged
ones below 2^15 · L · L.

Engines make NaN of an activation beyond L, which reaches the logits and is refused there
(`check_logits`); `reference` and `eager` look at the activations and say the same.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae2_fast.modules.attention import CausalAttention
from vqvae2_fast.modules.causal_conv import CausalConv2d, SameConv2d
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.folding import LEAST_NORM
from vqvae2_fast.sampling.plan import CentredPlan, ConvPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vqvae2_fast.sampling.settings import DrawSettings

__all__ = [
    "SAMPLING_BOUND",
    "ActivationHook",
    "ActivationWatch",
    "check_logits",
    "check_plan",
    "check_weights",
    "outside",
    "watched_activations",
]

SAMPLING_BOUND = 2.0**20
_LARGEST_SCALE = SAMPLING_BOUND / LEAST_NORM
_NOT_FINITE = (
    "The prior's weights are not finite, or too large for float32: load another checkpoint of it."
)


def outside(x: Tensor, bound: float = SAMPLING_BOUND) -> Tensor:
    """Whether a value is NaN or beyond the bound in absolute value: a bool on x's device."""
    if x.numel() == 0:
        return torch.zeros((), dtype=torch.bool, device=x.device)
    # The extremes show NaN too, and take 0.01 s for 85 million numbers; `isfinite().all()` 0.37 s.
    return ~(torch.stack(x.aminmax()).abs() <= bound).all()


def check_weights(tensors: Iterable[Tensor]) -> None:
    """Raises ValueError if a weight is NaN or beyond the bound."""
    _check(tensor for tensor in tensors if tensor.is_floating_point())


def check_plan(plan: object) -> None:
    """Raises ValueError if weight normalisation made a weight that is NaN or beyond the bound."""
    folded, scales = _folded(plan)
    # Twice the bound, because v / ‖v‖ is rounded, and `plan` adds biases and taps at one offset.
    _check(folded, 2 * SAMPLING_BOUND)
    _check(scales, _LARGEST_SCALE)


def check_logits(too_large: bool | Tensor, settings: DrawSettings) -> None:
    """Raises ValueError if one of the logits of a draw was beyond its settings' largest. Engines
    make NaN of them where an activation within the prior is beyond the bound."""
    if too_large:
        raise ValueError(
            f"prior: expected logits of absolute values up to {settings.largest_logit:.3g} "
            f"for these settings, and activations up to {SAMPLING_BOUND:.0f} within the prior, got "
            f"larger ones or NaN. {_NOT_FINITE}"
        )


def _all_within(tensors: Iterable[Tensor], bound: float) -> bool:
    """Whether no value is NaN or beyond the bound. The compiled library sees all in one call."""
    native = []
    for tensor in tensors:
        if _native.reads_floats(tensor) and tensor.is_contiguous():
            native.append(tensor)
        elif outside(tensor, bound):
            return False
    if not native:
        return True
    assert _native.module is not None
    return bool(_native.module.within(native, bound, torch.get_num_threads()))


def _check(tensors: Iterable[Tensor], bound: float = SAMPLING_BOUND) -> None:
    if not _all_within(tensors, bound):
        raise ValueError(
            "prior: expected finite weights of absolute values up to "
            f"{SAMPLING_BOUND:.0f}. {_NOT_FINITE}"
        )


def _folded(value: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a plan that are not a prior's own, and the scales of those that are."""
    if isinstance(value, Tensor):
        return [value], []
    if isinstance(value, ConvPlan):
        return [value.bias], list(value.scales or ())
    if isinstance(value, CentredPlan):
        return list(value.biases), list(value.scales or ())
    parts: Iterable[Any] = ()
    if isinstance(value, tuple):
        parts = value
    elif is_dataclass(value):
        parts = (getattr(value, field.name) for field in fields(value))
    tensors: list[Tensor] = []
    scales: list[Tensor] = []
    for part in parts:
        of_part = _folded(part)
        tensors += of_part[0]
        scales += of_part[1]
    return tensors, scales


class ActivationHook:
    """A hook of `watched_activations`; its type distinguishes it from a user's hooks.

    Args:
        see: Called with a module and what PyTorch calls its hooks with.
    """

    def __init__(self, see: Callable[..., None]) -> None:
        self._see = see

    def __call__(self, *arguments: Any) -> None:
        self._see(*arguments)


class ActivationWatch:
    """Whether an activation of a prior was beyond the bound since the watch began."""

    def __init__(self) -> None:
        self._beyond: list[Tensor] = []

    @property
    def beyond(self) -> bool:
        return any(bool(found) for found in self._beyond)

    def see(self, x: Tensor, *, positive: bool = False) -> None:
        """Look at activations; with `positive`, negative ones may have any size."""
        self._beyond.append(outside(x.clamp(min=0) if positive else x))


@contextmanager
def watched_activations(prior: nn.Module) -> Iterator[ActivationWatch]:
    """Watches the forward passes of a prior that is built of this package's modules."""
    watch = ActivationWatch()

    def inputs(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("elu"):
            watch.see(args[0], positive=True)
        elif module in read_as_they_are:
            watch.see(args[0])

    def keys(module: nn.Module, args: Any, output: Tensor) -> None:
        watch.see(output)

    layers = {
        name: module
        for name, module in prior.named_modules()
        if isinstance(module, (SameConv2d, CausalConv2d))
    }
    read_as_they_are = {
        layer
        for name, layer in layers.items()
        if name.rpartition(".")[2] in ("head", "merge", "condition")
    }
    handles = [
        layer.register_forward_pre_hook(ActivationHook(inputs), with_kwargs=True)
        for layer in layers.values()
    ]
    handles += [
        module.key.register_forward_hook(ActivationHook(keys))
        for module in prior.modules()
        if isinstance(module, CausalAttention)
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
