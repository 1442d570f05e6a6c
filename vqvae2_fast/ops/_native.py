"""The compiled module, if this install has one, and what it can do.

`import torch` must come first: the module links against torch's libraries by name and uses those
that the process has loaded. The package works without it, on the references, and says so once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch  # must precede the compiled module, which links against the libraries that torch loads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import ModuleType

__all__ = [
    "MISSING_REASON",
    "STRICT",
    "at_simd_level",
    "build_info",
    "default_floats",
    "has_tiles",
    "module",
    "reads_floats",
    "simd_level",
    "why_not_cuda",
]

STRICT = os.environ.get("VQVAE2_FAST_STRICT", "0") == "1"

# Whose stable ABI the compiled module uses.
_OLDEST_TORCH = (2, 11)


def _check_torch(version: str) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and tuple(map(int, numbers.groups())) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise ImportError(
            f"vqvae2_fast: expected PyTorch {oldest} or later, found {version}: "
            f"pip install -U 'torch>={oldest}'"
        )


_check_torch(torch.__version__)


module: ModuleType | None = None
MISSING_REASON = ""

try:
    module = importlib.import_module("vqvae2_fast._C")
except ModuleNotFoundError as error:
    if error.name != "vqvae2_fast._C":
        raise
    MISSING_REASON = "this install has no compiled module"
    remedy = "Install a C++ compiler and run `pip install .` from the source tree to build it."
    tree = Path(__file__).parents[2]
    if (tree / "setup.py").exists():
        remedy = (
            f"This is the source tree {tree}: start Python in another folder to use the installed "
            "package, or run `pip install -e .` here."
        )
    warnings.warn(
        "vqvae2_fast: no compiled module found, every operator runs on its PyTorch reference. "
        + remedy,
        stacklevel=2,
    )
except ImportError as error:
    raise ImportError(
        "vqvae2_fast: the compiled module was built for another system, processor or PyTorch and "
        f"does not load here ({error}): build it on this machine with `pip install .` from the "
        "source tree."
    ) from error

if module is not None:
    # An unsupported VQVAE2_FAST_SIMD raises here, at import, rather than at the first call.
    module.simd_level()


@contextlib.contextmanager
def at_simd_level(name: str) -> Iterator[None]:
    """The CPU's kernels run at this SIMD level inside. Without kernels there is none to choose."""
    if module is None:
        yield
        return
    before = module.simd_level()
    module.set_simd_level(name)
    try:
        yield
    finally:
        module.set_simd_level(before)


def simd_level() -> str | None:
    """The SIMD level of the CPU kernels: `scalar`, `avx2`, `avx2_vnni`, `avx512`, ...; None
    without the compiled module."""
    return None if module is None else str(module.simd_level())


def reads_floats(tensor: torch.Tensor) -> bool:
    """Whether the compiled module can read the memory of a tensor as float32."""
    return module is not None and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def default_floats() -> AbstractContextManager[None]:
    """The calling thread keeps denormals and rounds to nearest inside, whatever a program has set.

    Results whose bits must be the same on every machine are computed in it.
    """
    return contextlib.nullcontext() if module is None else module.DefaultFloats()


def has_tiles() -> bool:
    """Whether the CPU's level has tiles, on which products of bfloat16 are fast."""
    return module is not None and bool(module.has_tiles())


# As `torch.compiler.assume_constant_result` does, which would import the compiler with the package.
has_tiles._dynamo_marked_constant = True  # type: ignore[attr-defined]


def build_info() -> dict[str, object]:
    """What was built: SIMD levels, the CUDA architectures, the compiler."""
    return {"native": False} if module is None else {"native": True, **module.build_info()}


@functools.cache
def why_not_cuda(device: torch.device) -> str | None:
    """Why the compiled CUDA kernels do not run on a card, for instance its driver; None if they do.

    Each device is asked once per process.
    """
    if module is None:
        return MISSING_REASON
    with torch.cuda.device(device):
        reason: str | None = module.why_not_cuda()
    return reason


why_not_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]
