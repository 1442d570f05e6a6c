"""What `gpu.sh` has to know about a machine before it measures.

    python benchmarks/gpu_machine.py driver     # card, driver, and which CUDA is needed
    python benchmarks/gpu_machine.py package    # which vqvae2_fast is installed
    python benchmarks/gpu_machine.py engine     # what engine auto takes

Each prints one sentence. `driver` fails if nothing can be measured; it asks nvidia-smi and libcuda
before it imports torch, which only says that it sees no GPU. `package` fails unless a package with
compiled CUDA kernels is installed, and `engine` unless they run on this card.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, int]
# The first driver of each CUDA major version, which runs what any of its minor versions compiled:
# CUDA Compatibility guide, "Minor Version Compatibility".
FIRST_DRIVERS = {11: "450", 12: "525", 13: "580"}


@dataclass(frozen=True)
class Driver:
    """The first card, its driver, and the latest CUDA that the driver supports."""

    card: str
    version: str
    cuda: Version | None


@dataclass(frozen=True)
class Torch:
    """The installed PyTorch, and the CUDA that it was built for; None for other builds."""

    version: str
    cuda: Version | None
    hip: bool


def output_of(*command: str) -> str:
    """What a command prints; nothing if it is missing or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout if run.returncode == 0 else ""


def found_version(pattern: str, text: str) -> Version | None:
    match = re.search(pattern, text)
    return (int(match[1]), int(match[2])) if match else None


def libcuda_version() -> Version | None:
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except OSError:
        return None
    return None if failed else (number.value // 1000, number.value % 1000 // 10)


def find_driver() -> Driver | None:
    """The driver, None if there is no sign of one."""
    listed = output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    told = output_of("nvidia-smi")
    cuda = found_version(r"CUDA Version\s*:\s*(\d+)\.(\d+)", told) or libcuda_version()
    if not listed and cuda is None:
        return None
    card, _, version = (listed.splitlines() or ["an unknown card"])[0].partition(", ")
    return Driver(card, version or "of an unknown version", cuda)


def find_torch() -> Torch | None:
    """Reads torch/version.py, since importing a torch that does not fit the machine may fail."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    version = re.search(r"^__version__ = ['\"](.+)['\"]", text, re.MULTILINE)
    return Torch(
        version[1] if version else "of an unknown version",
        found_version(r"\ncuda\b[^=\n]*= ['\"](\d+)\.(\d+)", text),
        re.search(r"\nhip\b[^=\n]*= ['\"]", text) is not None,
    )


def named(cuda: Version) -> str:
    return f"CUDA {cuda[0]}.{cuda[1]}"


def too_old(driver: Driver, needed: Version) -> bool:
    """Whether the driver cannot run what this CUDA compiled. Within a major version any can."""
    return driver.cuda is not None and driver.cuda[0] < needed[0]


def remedy(driver: Driver, needed: Version) -> str:
    first = FIRST_DRIVERS.get(needed[0], f"of {named(needed)}")
    assert driver.cuda is not None
    return f"install driver {first} or later, or a build for CUDA {driver.cuda[0]}"


def judge(driver: Driver | None, torch: Torch | None, nvcc: Version | None) -> tuple[str, bool]:
    """One sentence on card, driver and what is needed; and whether anything can be measured."""
    if torch is not None and torch.hip:
        return f"torch {torch.version} is built for ROCm: the Triton kernels are measured.", True
    if driver is None:
        return (
            "No NVIDIA driver was found (neither nvidia-smi nor libcuda.so.1), so nothing can be "
            "measured: install one, or start the container with its GPUs.",
            False,
        )
    supports = named(driver.cuda) if driver.cuda else "an unknown CUDA"
    start = f"{driver.card}, driver {driver.version}, which supports {supports}: "
    if torch is None:
        return f"{start}torch is not installed, so nothing can be measured.", False
    start += f"torch {torch.version} "
    if torch.cuda is None:
        return f"{start}is a build without CUDA, so nothing can be measured: install one.", False
    start += f"needs {named(torch.cuda)}"
    if too_old(driver, torch.cuda):
        return f"{start}, so nothing can be measured: {remedy(driver, torch.cuda)}.", False
    if nvcc is None:
        return f"{start}, and there is no nvcc: only an installed package can be measured.", True
    start += f" and runs; what nvcc builds needs {named(nvcc)} and "
    if too_old(driver, nvcc):
        return (
            f"{start}does not run, so engine eager and the Triton kernels are used in place of "
            f"kernels that it builds: {remedy(driver, nvcc)}.",
            True,
        )
    return f"{start}runs.", True


def check_driver() -> bool:
    nvcc = found_version(r"release (\d+)\.(\d+)", output_of("nvcc", "--version"))
    sentence, measurable = judge(find_driver(), find_torch(), nvcc)
    print(sentence, flush=True)
    if not measurable:
        return False
    import torch

    if not torch.cuda.is_available():
        print("torch sees no GPU although the driver suits it: is CUDA_VISIBLE_DEVICES empty?")
        return False
    return True


def check_package() -> bool:
    if importlib.util.find_spec("vqvae2_fast") is None:
        print("vqvae2_fast is not installed.")
        return False
    import vqvae2_fast
    from vqvae2_fast.ops import build_info

    folder, built = Path(vqvae2_fast.__file__).parent, build_info()
    if not built.get("cuda"):
        kernels = "without CUDA kernels" if built["native"] else "without compiled kernels"
    else:
        kernels = f"with CUDA kernels for {built['cuda_architectures']}"
    print(f"vqvae2_fast {vqvae2_fast.__version__} in {folder}, {kernels}.")
    return bool(built.get("cuda"))


def check_engine() -> bool:
    import torch

    from vqvae2_fast.ops import _native
    from vqvae2_fast.sampling import choose_engine

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers.models import tiny_prior

    reason = _native.why_not_cuda(torch.device("cuda", 0))
    engine, why = choose_engine("auto", tiny_prior().cuda())
    kernels = "run on this device" if reason is None else f"do not run: {reason}"
    print(f"The compiled CUDA kernels {kernels}. Engine auto takes {engine}: {why}.")
    return engine == "cuda"


CHECKS = {"driver": check_driver, "package": check_package, "engine": check_engine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=CHECKS)
    raise SystemExit(not CHECKS[parser.parse_args().check]())


if __name__ == "__main__":
    main()
