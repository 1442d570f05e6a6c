"""The operator table: for each operator a schema, a reference and at most one owner per device.

An operator is defined once, here in Python, as a `torch.library` schema. Its reference is
registered as the default kernel, so it runs on any device. Compiled kernels are registered for
their dispatch key by the native module, Triton kernels here; a Triton file is loaded at its first
call. `Operator.choose` is the only place that decides between a kernel and the reference, and it
is asked once per call: a compiled kernel never calls back into Python.

Registration also makes the tests: `tests/ops/test_conformance.py` walks `OPERATORS`.
"""

from __future__ import annotations

import functools
from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._decomp import meta_table
from torch.autograd import forward_ad

from vqvae2_fast.ops import _native
from vqvae2_fast.ops._triton import launcher, why_not_triton

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BY_DESIGN", "OPERATORS", "TRITON_LAUNCHERS", "Operator", "owner", "register"]

LIBRARY = torch.library.Library("vqvae2_fast", "DEF")
OPERATORS: dict[str, Operator] = {}
# `torch.onnx.export` takes operators apart by the attribute. They may not stand in the dictionary
# behind it: where the variable `CI` is set, Inductor refuses an operator that has an entry there.
EXPORTED: dict[torch._ops.OperatorBase, Callable[..., Any]] = {}
torch._decomp.decomposition_table = ChainMap(  # type: ignore[assignment]
    torch._decomp.decomposition_table, EXPORTED
)
# Name -> host function that launches the Triton kernels.
TRITON_LAUNCHERS: dict[str, Callable[..., Any]] = {}

# What a predicate returns where the reference or a library function computes a call by design,
# although a kernel could: the kernel is not claimed to be faster.
BY_DESIGN = "by design"


def _takes_everything(*_: Any) -> str | None:
    return None


def transforms_are_active() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation surrounds the call.

    Kernels have rules for neither; the calls in a reference have rules for both.
    """
    # PyTorch has no public function for either; its own compiler uses these.
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


@dataclass(eq=False)
class Operator:
    """An operator and who computes it.

    Args:
        schema: Its `torch.library` schema without the name.
        reference: Eager PyTorch that defines it, for any device and dtype. Where the operator has
            a gradient, PyTorch can differentiate the reference any number of times.
        owners: Device type to backend, as in `{"cpu": "cpu", "cuda": "triton"}`. A device that is
            not listed runs the reference by design.
        why_not: The predicate. It takes the operator's arguments and returns None if the owner's
            kernel computes them, `BY_DESIGN`, or the reason why the kernel does not take them.
        kernel: The function to run if the kernel computes a call.
        differentiable: The operator has a gradient.
        is_gradient: The operator is called by another one's backward.
        private: Only this package calls it, and the caller checks the arguments.
        overload: What `torch.ops` gives for the name.
        exported: What the operator is in programs for other runtimes: the reference, or a shorter
            form where that has loops or writes that such a program cannot hold.

    `choose` takes the operator's arguments, of which the first is a tensor, and says who computes
    the call: None for the owner's kernel, `BY_DESIGN`, or the reason why the owner's kernel does
    not take it. If the operator has a gradient, its reference computes calls inside a transform of
    `torch.func` or forward-mode differentiation, and gradients that may themselves be
    differentiated: kernels have no rules for these.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    owners: dict[str, str]
    why_not: Callable[..., str | None]
    kernel: Callable[..., Any]
    differentiable: bool
    is_gradient: bool
    private: bool
    overload: Any
    exported: Callable[..., Any]

    def __post_init__(self) -> None:
        self.choose = _chooser(self)

    def own(self, device: str, backend: str) -> None:
        """Make a backend the owner on a device."""
        self.owners[device] = backend
        self.choose = _chooser(self)

    def __call__(self, *args: Any) -> Any:
        reason = self.choose(*args)
        return self.kernel(*args) if reason is None else self.fall_back(reason, *args)

    def fall_back(self, reason: str, *args: Any) -> Any:
        """Run the reference, for a call that no kernel takes for this reason."""
        self.refuse_if_strict(reason)
        if self.differentiable or self.is_gradient or args[0].device.type in self.owners:
            return self.reference(*args)
        # For this device the dispatcher runs the reference; tracers see one call.
        return self.overload(*args)

    def takes(self, *args: Any) -> bool:
        """`choose` for callers that have an alternative of their own to the reference."""
        reason = self.choose(*args)
        if reason is not None:
            self.refuse_if_strict(reason)
        return reason is None

    def refuse_if_strict(self, reason: str) -> None:
        """Raise RuntimeError if `VQVAE2_FAST_STRICT=1` and the reason is not `BY_DESIGN`."""
        if _native.STRICT and reason is not BY_DESIGN:
            raise RuntimeError(
                f"{self.name}: VQVAE2_FAST_STRICT=1 and no compiled kernel takes this call: "
                f"{reason}."
            )

    def owner(self, *args: Any) -> str:
        """Who computes a call with these arguments: see `vqvae2_fast.ops.owner`."""
        reason = self.choose(*args)
        if reason is BY_DESIGN:
            return "reference"
        if reason is not None:
            return f"reference: {reason}"
        backend = self.owners[args[0].device.type]
        return f"cpu:{_native.simd_level()}" if backend == "cpu" else backend


def _chooser(operator: Operator) -> Callable[..., str | None]:
    """Makes `Operator.choose`: a closure, because the attributes that a method reads cost a tenth
    of the time of a small call."""
    owners, why_not = operator.owners, operator.why_not
    cpu_is_ready = owners.get("cpu") == "cpu" and _native.module is not None
    is_gradient, in_transform = operator.is_gradient, torch._C._are_functorch_transforms_active
    has_derivative = operator.differentiable or is_gradient

    def choose(*args: Any) -> str | None:
        # `transforms_are_active()`, without the time of its call.
        if has_derivative and (forward_ad._current_level >= 0 or in_transform()):
            return BY_DESIGN
        if is_gradient and torch.is_grad_enabled():
            return BY_DESIGN
        if cpu_is_ready and args[0].is_cpu:
            return why_not(*args)
        device = args[0].device
        if device.type not in owners:
            return BY_DESIGN
        reason = why_not(*args)
        missing = _why_not_backend(owners[device.type], device)
        return reason if missing is None or reason is BY_DESIGN else missing

    return choose


def _why_not_backend(backend: str, device: torch.device) -> str | None:
    """Why a backend does not run in this install or on this device, or None."""
    if backend == "triton":
        return why_not_triton(device)
    if backend == "cuda":
        return _native.why_not_cuda(device)
    return _native.MISSING_REASON if _native.module is None else None


def register(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any] | None = None,
    owners: dict[str, str] | None = None,
    why_not: Callable[..., str | None] = _takes_everything,
    kernel: Callable[..., Any] | None = None,
    exported: Callable[..., Any] | None = None,
    gradient: tuple[Callable[..., None], Callable[..., Any]] | None = None,
    is_gradient: bool = False,
    private: bool = False,
    triton: bool | None = None,
) -> Operator:
    """Define an operator, register its reference as the default kernel and enter it in the table.

    Without `fake` the operator is transparent (`CompositeImplicitAutograd`): tracing and autograd
    see the calls inside the reference, and `kernel` runs an opaque private operator in its place.
    With `fake` it is opaque to both, and `gradient` is its gradient.

    Args:
        gradient: `setup_context` and `backward` of an opaque operator. `backward` calls operators
            registered with `is_gradient`.
        triton: The operator's folder holds `<op>_triton` in `triton.py`; true by default if
            "triton" is an owner. The other arguments are those of `Operator`.

    Raises:
        RuntimeError: `owners` and the kernels that the compiled module registers disagree.
    """
    owners = owners or {}
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    key = "CompositeImplicitAutograd" if fake is None else "CompositeExplicitAutograd"
    LIBRARY.impl(name, reference, key)
    if fake is not None:
        _check_owners(name, owners)
        torch.library.register_fake(f"vqvae2_fast::{name}", _on_one_device(fake), lib=LIBRARY)
        if "triton" in owners.values() if triton is None else triton:
            folder = reference.__module__.split(".")[-2]
            TRITON_LAUNCHERS[name] = launcher(folder, name)
            if owners.get("cuda") == "triton":
                # ROCm builds of torch call their devices `cuda` too.
                LIBRARY.impl(name, TRITON_LAUNCHERS[name], "CUDA")
    if gradient is not None:
        setup_context, backward = gradient
        torch.library.register_autograd(
            f"vqvae2_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
        )
    overload = getattr(torch.ops.vqvae2_fast, name).default
    operator = OPERATORS[name] = Operator(
        name=name,
        schema=schema,
        reference=reference,
        owners=owners,
        why_not=why_not,
        kernel=kernel or overload,
        differentiable=fake is None or gradient is not None,
        is_gradient=is_gradient,
        private=private or is_gradient,
        overload=overload,
        exported=exported or reference,
    )
    if fake is not None:
        EXPORTED[overload] = operator.exported
        # Without this entry, tracers would lay out results of open sizes as `exported` does.
        meta_table[overload] = fake
    return operator


def _on_one_device(fake: Callable[..., Any]) -> Callable[..., Any]:
    """`fake`, which would make results of a tensor without data beside others, for one device."""

    @functools.wraps(fake)
    def checked(*args: Any) -> Any:
        devices = {str(value.device) for value in args if isinstance(value, torch.Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"expected tensors of one device, got {', '.join(sorted(devices))}.")
        return fake(*args)

    return checked


def _check_owners(name: str, owners: dict[str, str]) -> None:
    """Refuse owners without a kernel and kernels without an owner: `owner` would be wrong."""
    built = {"cpu": _native.module is not None, "cuda": _native.build_info().get("cuda", False)}
    for device, is_built in built.items():
        key = device.upper()
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"vqvae2_fast::{name}", key)
        if has_kernel != (is_built and owners.get(device) == device):
            found = "a" if has_kernel else "no"
            raise RuntimeError(
                f"register: expected owners to name the kernels of {name}, got {owners}, but the "
                f"compiled module registers {found} kernel for {key}. Give owners={{{device!r}: "
                f"{device!r}}} if and only if csrc/bindings implements the schema for that device, "
                "and run tools/rebuild after a change of csrc."
            )


def owner(op_name: str, *args: Any) -> str:
    """Who computes `op_name` on these arguments.

    Args:
        op_name: A name in `OPERATORS`.
        args: The operator's arguments in the order of its schema, a tensor first; trailing ones
            that do not decide may be left out.

    Returns:
        `cpu:<SIMD level>`, `triton` or `cuda`; `reference` where no faster owner is claimed; or
        `reference: <reason>` if there is an owner that does not take this call.

    Raises:
        ValueError: No operator of that name, no tensor given, or too few arguments.
    """
    if op_name not in OPERATORS:
        raise ValueError(f"expected one of {', '.join(OPERATORS)}, got {op_name!r}.")
    if not args or not isinstance(args[0], torch.Tensor):
        raise ValueError(f"expected the arguments of {op_name}, a tensor first, got {args}.")
    operator = OPERATORS[op_name]
    try:
        return operator.owner(*args)
    except TypeError as error:
        raise ValueError(
            f"expected the arguments of {op_name}{operator.schema}, got {len(args)}: {error}."
        ) from error
