"""The engines by name, and which of them draws: the one asked for, or what `auto` stands for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.sampling.engines.cpu import cpu_plan_of, draw_cpu, draw_w8a8, why_not_cpu
from vqvae2_fast.sampling.engines.cuda import (
    NO_WORDS,
    card_name,
    draw_cuda,
    why_not_cuda,
    why_not_prior,
)
from vqvae2_fast.sampling.engines.eager import draw_eager
from vqvae2_fast.sampling.engines.reference import draw_reference
from vqvae2_fast.sampling.prior import (
    NO_PLAN,
    PriorInterface,
    interface_of,
    plan_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.sampling.request import Drawn, DrawRequest

__all__ = [
    "ENGINES",
    "ROUNDING_ENGINES",
    "Choice",
    "choose",
    "choose_engine",
    "cuda_fallback_message",
    "warn_once",
]

# An engine is a function of the prior, its interface and the request.
ENGINES: dict[str, Callable[[nn.Module, PriorInterface, DrawRequest], Drawn]] = {
    "cpu": lambda prior, interface, request: draw_cpu(cpu_plan_of(prior, interface), request),
    "cuda": lambda prior, interface, request: draw_cuda(plan_of(prior, interface), request),
    "eager": lambda prior, interface, request: draw_eager(plan_of(prior, interface), request),
    "reference": draw_reference,
}
# These draw from a prior close to the one given; `auto` never takes them.
ROUNDING_ENGINES: dict[str, Callable[[nn.Module, PriorInterface, DrawRequest], Drawn]] = {
    "cpu_w8a8": draw_w8a8,
    "cuda_tf32": lambda prior, interface, request: draw_cuda(
        plan_of(prior, interface), request, "cuda_tf32"
    ),
    "cuda_bfloat16": lambda prior, interface, request: draw_cuda(
        plan_of(prior, interface), request, "cuda_bfloat16"
    ),
}


@dataclass(frozen=True)
class Choice:
    """What draws a map.

    Args:
        engine: A key of `ENGINES` or `ROUNDING_ENGINES`.
        why: In words.
        warning: A sentence for somebody who counts on a faster engine; or nothing.
    """

    engine: str
    why: str
    warning: str = ""


def choose_engine(
    engine: str = "auto",
    prior: nn.Module | None = None,
    *,
    batch_size: int = 1,
    guided: bool = False,
) -> tuple[str, str]:
    """The engine that `sample_codes` uses for an `engine` argument, and why.

    Args:
        prior: The prior to draw from; None stands for one in float32 on the CPU.
        batch_size, guided: What will be drawn, on which it depends what fits a GPU; guided
            is any `guidance_scale` but 1.

    Raises:
        ValueError: No engine of that name.
    """
    interface = None if prior is None else interface_of(prior)
    choice = choose(engine, prior, interface, batch_size=batch_size, guided=guided)
    return choice.engine, choice.why


def choose(
    engine: str,
    prior: nn.Module | None,
    interface: PriorInterface | None,
    *,
    batch_size: int,
    guided: bool,
) -> Choice:
    """`choose_engine`, with what to warn of."""
    if engine == "auto":
        if prior is None or interface is None:
            return _automatic_on_cpu(torch.device("cpu"), torch.float32)
        return _automatic(prior, interface, batch_size, guided)
    known = [*ENGINES, *ROUNDING_ENGINES]
    if engine not in known:
        raise ValueError(f"engine: expected one of auto, {', '.join(known)}, got {engine!r}.")
    return Choice(engine, "asked for by name")


def _automatic(
    prior: nn.Module, interface: PriorInterface, batch_size: int, guided: bool
) -> Choice:
    if no_plan := interface.why_no_plan:
        warning = ""
        if no_plan is not NO_PLAN:
            warning = f"engine reference draws, far slower than others: {no_plan}."
        return Choice("reference", no_plan, warning=warning)
    device, dtype = device_of(prior), next(prior.parameters()).dtype
    if device.type != "cuda":
        return _automatic_on_cpu(device, dtype)
    reason = why_not_cuda(device, dtype)
    if reason is None:
        reason = NO_WORDS if interface.num_words else None
        reason = reason or why_not_prior(plan_of(prior, interface), batch_size, guided=guided)
        if reason is None:
            return Choice("cuda", "the persistent kernels take this prior on this card")
    return Choice("eager", f"not cuda: {reason}", warning=cuda_fallback_message(device, reason))


def _automatic_on_cpu(device: torch.device, dtype: torch.dtype) -> Choice:
    """What `auto` stands for on the CPU, and on devices that no compiled engine knows."""
    reason = why_not_cpu(device, dtype)
    if reason is None:
        return Choice("cpu", "the compiled engine takes every float32 prior on the CPU")
    return Choice("eager", f"not cpu: {reason}")


def cuda_fallback_message(device: torch.device, reason: str) -> str:
    """Why engine `cuda` does not use this GPU; empty on ROCm, where nobody expects it to."""
    if torch.version.hip is not None:
        return ""
    return f"engine cuda is not used on {card_name(device)}: {reason}. Engine eager draws instead."


_warned: set[str] = set()


def warn_once(warning: str) -> None:
    """Warn of it, unless it is empty or this process has been warned of it before."""
    if warning and warning not in _warned:
        _warned.add(warning)
        warnings.warn(warning, RuntimeWarning, stacklevel=2)
