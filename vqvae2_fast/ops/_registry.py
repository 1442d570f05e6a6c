"""The operator table: for each operator a schema, a reference and at most one owner per device.

An operator is defined once, here in Python, as a `torch.library` schema. Its reference is
registered as the default kernel, so it runs on any device; compiled kernels are registered for
their dispatch key by the native module. `Operator.__call__` asks the predicate whether the owner
takes these arguments and otherwise runs the reference: a compiled kernel never calls back into
Python.

Registration is also what makes the tests: `tests/ops/test_conformance.py` walks `OPERATORS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OPERATORS", "Operator", "owner", "register"]

LIBRARY = torch.library.Library("vqvae2_fast", "DEF")
OPERATORS: dict[str, Operator] = {}


def _accepts_everything(*_: Any) -> str | None:
    return None


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
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    owners: dict[str, str] = field(default_factory=dict)
    refusal: Callable[..., str | None] = _accepts_everything
    differentiable: bool = False
    # Set by `register`: what `torch.ops` gives for this name.
    overload: Any = None

    def __call__(self, *args: Any) -> Any:
        backend = self.owners.get(args[0].device.type)
        if backend is None:
            return self.overload(*args)
        reason = self._why_reference(backend, args)
        if reason is None:
            return self.overload(*args)
        if _native.STRICT:
            raise RuntimeError(
                f"{self.name}: VQVAE2_FAST_STRICT=1 and no compiled kernel takes this call: "
                f"{reason}."
            )
        return self.reference(*args)

    def _why_reference(self, backend: str, args: tuple[Any, ...]) -> str | None:
        if _native.module is None and backend in ("cpu", "cuda"):
            return _native.MISSING_REASON
        if backend == "cuda" and not _native.build_info()["cuda"]:
            return "the compiled module was built without CUDA"
        return self.refusal(*args)

    def owner_refuses(self, *args: Any) -> bool:
        """Whether a call with these arguments runs on the reference."""
        backend = self.owners.get(args[0].device.type)
        return backend is None or self._why_reference(backend, args) is not None

    def owner(self, *args: Any) -> str:
        """Who computes a call with these arguments: see `vqvae2_fast.ops.owner`."""
        backend = self.owners.get(_device_type(args))
        if backend is None:
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
) -> Operator:
    """Define an operator, register its reference as the default kernel and enter it in the table.

    Without `fake` the reference is differentiable composition (`CompositeImplicitAutograd`):
    tracing and autograd see the calls inside. With it the operator is opaque to both, and a
    gradient has to be given by `torch.library.register_autograd`.
    """
    differentiable = fake is None
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    key = "CompositeImplicitAutograd" if differentiable else "CompositeExplicitAutograd"
    LIBRARY.impl(name, reference, key)
    if fake is not None:
        torch.library.register_fake(f"vqvae2_fast::{name}", fake, lib=LIBRARY)
    overload = getattr(torch.ops.vqvae2_fast, name).default
    operator = Operator(name, schema, reference, owners or {}, refusal, differentiable, overload)
    OPERATORS[name] = operator
    return operator


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
