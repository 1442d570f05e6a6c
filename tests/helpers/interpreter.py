"""Runs Triton kernels on the CPU, in Triton's interpreter, which takes a separate process.

`TRITON_INTERPRET=1` must be set before Triton is imported. For the whole process the interpreted
kernels then take the place of the compiled ones, so that every test of an operator tests its Triton
kernel.
"""

from __future__ import annotations

from vqvae2_fast.ops._registry import LIBRARY, OPERATORS, TRITON_LAUNCHERS
from vqvae2_fast.ops._triton import INTERPRETED

__all__ = ["interpret_on_cpu"]


def interpret_on_cpu() -> None:
    """Make Triton the owner of its operators on the CPU.

    Raises:
        RuntimeError: The process was started without `TRITON_INTERPRET=1`.
    """
    if not INTERPRETED:
        raise RuntimeError("interpret_on_cpu: set TRITON_INTERPRET=1 before Python starts.")
    for operator in OPERATORS.values():
        if operator.name in TRITON_LAUNCHERS or "triton" in operator.owners.values():
            operator.own("cpu", "triton")
    for name, launch in TRITON_LAUNCHERS.items():
        LIBRARY.impl(name, launch, "CPU", allow_override=True)
