"""Running Triton kernels: whether they can run here, their configurations, and the launch.

Importing this module does not import Triton: machines without it never load a kernel file. An
architecture has the name that compilers use (`sm_90`, `gfx942`), or `interpreter` if Triton runs
its kernels on the CPU (`TRITON_INTERPRET=1`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "INTERPRETED",
    "Launch",
    "architecture",
    "configuration",
    "convolution_precision",
    "convolutions_take_tf32",
    "dependent_launch",
    "dot_precision",
    "launch",
    "launcher",
    "operand_type",
    "recording",
    "runs_triton",
    "why_not_triton",
]

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_HAS_TRITON = importlib.util.find_spec("triton") is not None

# Kernel -> architecture -> block sizes, num_warps, num_stages.
_CONFIGURATIONS = json.loads((Path(__file__).parent / "triton_configurations.json").read_text())


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its arguments by name, and the compiler's options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]


_recorded: list[Launch] | None = None
_recorded_architecture = ""


@contextmanager
def recording(target: str) -> Iterator[list[Launch]]:
    """Launches inside are recorded as `target` would get them, but not run."""
    global _recorded, _recorded_architecture
    _recorded, _recorded_architecture = [], target
    try:
        yield _recorded
    finally:
        _recorded = None


@functools.cache
def _device_architecture(index: int) -> str:
    if torch.version.hip:
        name: str = torch.cuda.get_device_properties(index).gcnArchName
        return name.split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def architecture(device: torch.device) -> str:
    """What kernels on this device are compiled for: `sm_90`, `gfx942` or `interpreter`."""
    if _recorded is not None:
        return _recorded_architecture
    if device.type == "cuda":
        return _device_architecture(
            torch.cuda.current_device() if device.index is None else device.index
        )
    return "interpreter"


def why_not_triton(device: torch.device) -> str | None:
    """Why no Triton kernel runs on this device, or None."""
    if not _HAS_TRITON:
        return "triton is not installed"
    if device.type == "cuda":
        major = torch.cuda.get_device_properties(device).major
        if torch.version.hip is None and major < 8:
            return f"compute capability {major}: the Triton kernels need 8.0 or later"
    elif not INTERPRETED:
        return f"Triton kernels do not run on {device.type}"
    return None


def runs_triton(tensor: Tensor) -> bool:
    """Whether Triton owns, on this device, an operator that has kernels in both C++ and Triton."""
    return INTERPRETED or not tensor.is_cpu


def launcher(folder: str, name: str) -> Callable[..., Any]:
    """The host function of an operator's Triton kernels, whose file loads at the first call."""

    def call(*args: Any) -> Any:
        module = importlib.import_module(f"vqvae2_fast.ops.{folder}.triton")
        return getattr(module, f"{name.rstrip('_')}_triton")(*args)

    return call


@functools.cache
def _configuration(kernel: str, arch: str) -> dict[str, int]:
    table: dict[str, dict[str, int]] = _CONFIGURATIONS[kernel]
    if arch in table:
        return table[arch]
    if not arch.startswith("sm_"):
        return table["gfx942"]
    known = [int(name[3:]) for name in table if name.startswith("sm_")]
    return table[f"sm_{max(number for number in known if number <= int(arch[3:]))}"]


def configuration(kernel: str, device: torch.device) -> dict[str, int]:
    """Block sizes and compiler options of a kernel: a table lookup, never a measurement.

    A device that has no row takes the row of the newest architecture before it.
    """
    return _configuration(kernel, architecture(device))


def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Launch options of a kernel that may start before the one ahead of it has ended; it waits
    itself, where DEPENDENT. Hopper and later."""
    arch = architecture(device)
    if arch.startswith("sm_") and int(arch[3:]) >= 90:
        return {"DEPENDENT": True, "launch_pdl": True}
    return {"DEPENDENT": False}


def _precision(dtype: torch.dtype, device: torch.device, tf32: bool) -> str:
    if dtype != torch.float32 or not architecture(device).startswith("sm_"):
        return "ieee"
    return "tf32" if tf32 else "tf32x3"


def dot_precision(dtype: torch.dtype, device: torch.device) -> str:
    """How `tl.dot` multiplies: float32 as three TF32 products, unless PyTorch allows TF32."""
    # `allow_tf32`, which sets this too, cannot be read after this has been set.
    return _precision(dtype, device, torch.backends.cuda.matmul.fp32_precision == "tf32")


def convolutions_take_tf32() -> bool:
    """Whether PyTorch allows TF32 in convolutions of float32."""
    precision: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32"


# Compilers cannot trace it. Their graphs keep the owner of a convolution; its kernel asks again.
convolutions_take_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def convolution_precision(dtype: torch.dtype, device: torch.device) -> str:
    """The same for convolutions, where PyTorch allows TF32 unless told otherwise."""
    return _precision(dtype, device, convolutions_take_tf32())


def operand_type(dtype: torch.dtype) -> Any:
    """The dtype of operands of `tl.dot`: Triton's interpreter cannot multiply bfloat16."""
    import triton.language as tl

    names = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return tl.float32 if INTERPRETED else names[dtype]


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """`kernel[grid](*args, **options)` on the device of the first tensor.

    An empty grid launches nothing.

    Raises:
        RuntimeError: The kernel did not compile or launch; the error names it and its tensors.
    """
    if 0 in grid:
        return
    # Said in each launch, because the default of Triton 3.10 will be another one.
    options.setdefault("enable_fp_fusion", True)
    if _recorded is not None:
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        arguments.update((name, options.pop(name)) for name in kernel.arg_names if name in options)
        _recorded.append(Launch(kernel, grid, arguments, options))
        return
    from triton.errors import TritonError

    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    try:
        if tensors[0].is_cuda:
            with torch.cuda.device(tensors[0].device):
                kernel[grid](*args, **options)
        else:
            kernel[grid](*args, **options)
    except (RuntimeError, TritonError) as error:
        shapes = ", ".join(described(tensor) for tensor in tensors)
        raise RuntimeError(
            f"{kernel.__name__}: the launch of {list(grid)} programs on {shapes} failed: {error}"
        ) from error
