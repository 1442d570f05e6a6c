"""The operator table: for each operator a schema, a reference and at most one owner per device.

An operator is defined once, here in Python, as a `torch.library` schema. Its reference is
registered as the default kernel, so it runs on any device; compiled kernels are registered for
their dispatch key by the native module, Triton kernels here, their file unloaded until the first
call. `Operator.__call__` asks the predicate whether the owner takes these arguments and otherwise
runs the reference: a compiled kernel never calls back into Python.

Registration is also what makes the tests: `tests/ops/test_conformance.py` walks `OPERATORS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.ops import _native
from vqvae2_fast.ops._triton import launcher, why_not_triton

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OPERATORS", "TRITON_LAUNCHERS", "Operator", "define_triton", "owner", "register"]

LIBRARY = torch.library.Library("vqvae2_fast", "DEF")
OPERATORS: dict[str, Operator] = {}
# Name -> host side of what Triton computes.
TRITON_LAUNCHERS: dict[str, Callable[..., Any]] = {}


def _accepts_everything(*_: Any) -> str | None:
    return None


def _never(*_: Any) -> bool:
    return False


@dataclass(frozen=True)
class Operator:
    """An operator and who computes it.

    Args:
        schema: Its `torch.library` schema without the name.
        reference: Eager PyTorch that defines it, for any device and dtype.
        owners: Device type to backend: `{"cpu": "cpu", "cuda": "triton"}`. Empty: the reference is
            the implementation by design.
        refusal: Takes the operator's arguments; returns why a compiled kernel does not take
            them, or None.
        differentiable: The reference is composed of differentiable calls and is registered so that
            autograd goes through it. Otherwise `register_autograd` or no gradient.
        by_design: Takes the operator's arguments; whether the reference is what computes them
            although there is an owner.
        fused: What runs in place of a differentiable reference where the owner takes a call: an
            opaque operator with its own gradient. None: the overload itself reaches the owner.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    owners: dict[str, str] = field(default_factory=dict)
    refusal: Callable[..., str | None] = _accepts_everything
    differentiable: bool = False
    by_design: Callable[..., bool] = _never
    fused: Callable[..., Any] | None = None
    # Set by `register`: what `torch.ops` gives for this name.
    overload: Any = None

    def __call__(self, *args: Any) -> Any:
        backend = self.owners.get(args[0].device.type)
        if backend is None or self.by_design(*args):
            return self.overload(*args)
        reason = self._why_reference(backend, args)
        if reason is None:
            return self.overload(*args) if self.fused is None else self.fused(*args)
        if _native.STRICT:
            raise RuntimeError(
                f"{self.name}: VQVAE2_FAST_STRICT=1 and no compiled kernel takes this call: "
                f"{reason}."
            )
        return self.reference(*args)

    def _why_reference(self, backend: str, args: tuple[Any, ...]) -> str | None:
        if _native.module is None and backend in ("cpu", "cuda"):
            return _native.MISSING_REASON
        if backend == "cuda" and (reason := _native.why_not_cuda(args[0].device)) is not None:
            return reason
        if backend == "triton":
            reason = why_not_triton(args[0].device)
            if reason is not None:
                return reason
        return self.refusal(*args)

    def owner(self, *args: Any) -> str:
        """Who computes a call with these arguments: see `vqvae2_fast.ops.owner`."""
        backend = self.owners.get(_device_type(args))
        if backend is None or self.by_design(*args):
            return "reference"
        reason = self._why_reference(backend, args)
        if reason is not None:
            return f"reference: {reason}"
        return f"cpu:{_native.simd_level()}" if backend == "cpu" else backend


def _device_type(args: tuple[Any, ...]) -> str:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg.device.type
    raise ValueError("owner: expected at least one tensor, to know the device; got none.")


def register(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any] | None = None,
    owners: dict[str, str] | None = None,
    refusal: Callable[..., str | None] = _accepts_everything,
    by_design: Callable[..., bool] = _never,
    fused: Callable[..., Any] | None = None,
) -> Operator:
    """Define an operator, register its reference as the default kernel and enter it in the table.

    Without `fake` the reference is differentiable composition (`CompositeImplicitAutograd`):
    tracing and autograd see the calls inside. With it the operator is opaque to both, and a
    gradient has to be given by `torch.library.register_autograd`.

    The other arguments are those of `Operator`. A Triton owner is the function `<op>_triton` of
    `ops/<op>/triton.py`; ROCm builds of torch call their devices `cuda` too.
    """
    differentiable = fake is None
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    key = "CompositeImplicitAutograd" if differentiable else "CompositeExplicitAutograd"
    LIBRARY.impl(name, reference, key)
    if fake is not None:
        torch.library.register_fake(f"vqvae2_fast::{name}", fake, lib=LIBRARY)
    owners = owners or {}
    folder = name.rstrip("_")
    if not differentiable and (Path(__file__).parent / folder / "triton.py").exists():
        _add_triton(folder, name, owns=owners.get("cuda") == "triton")
    overload = getattr(torch.ops.vqvae2_fast, name).default
    operator = Operator(
        name, schema, reference, owners, refusal, differentiable, by_design, fused, overload
    )
    OPERATORS[name] = operator
    return operator


def _add_triton(folder: str, name: str, *, owns: bool = True) -> None:
    """The function `<name>_triton` of `ops/<folder>/triton.py` computes `name` on CUDA."""
    TRITON_LAUNCHERS[name] = launcher(folder, name)
    if owns:
        LIBRARY.impl(name, TRITON_LAUNCHERS[name], "CUDA")


def define_triton(folder: str, name: str, schema: str, *, fake: Callable[..., Any]) -> Any:
    """Define an operator that has Triton kernels alone: what is `fused` behind another one."""
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"vqvae2_fast::{name}", fake, lib=LIBRARY)
    _add_triton(folder, name)
    return getattr(torch.ops.vqvae2_fast, name).default


def owner(op_name: str, *tensors: torch.Tensor) -> str:
    """Who computes `op_name` on these tensors.

    Returns:
        `cpu:<level>`, `triton` or `cuda`; `reference` where no faster owner is claimed; or
        `reference: <reason>` where there is an owner and it does not take this call.

    Raises:
        ValueError: No operator of that name, or no tensor given.
    """
    if op_name not in OPERATORS:
        raise ValueError(f"owner: expected one of {', '.join(OPERATORS)}, got {op_name!r}.")
    return OPERATORS[op_name].owner(*tensors)
