"""Drives CMakeLists.txt. Everything declarative is in pyproject.toml.

Environment: VQVAE2_FAST_BUILD=python installs only the references;
VQVAE2_FAST_BUILD_CUDA=0|1 forbids or demands the CUDA kernels (unset: if nvcc is found);
MAX_JOBS limits the compiler processes; VQVAE2_FAST_TORCH is the folder of a torch to build against,
for another machine perhaps, whose compiler CMAKE_TOOLCHAIN_FILE names (build_tools/wheels.py).

The compiled module uses torch's stable ABI: a wheel is for one platform, for one Python, since
pybind11 does not keep to the limited API, and for every torch from 2.11 on.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))
from torch_folder import installed_torch, is_new_enough  # noqa: E402

NEEDS_COMPILER = """
vqvae2_fast needs a C++20 compiler to build its kernels, and none was found (tried: {tried}).
  Debian, Ubuntu:  apt-get install g++
  Fedora:          dnf install gcc-c++
  conda:           conda install -c conda-forge cxx-compiler
Or set CXX to one. To install without kernels, on the slower PyTorch references:
  VQVAE2_FAST_BUILD=python pip install .
"""


def find_torch() -> Path:
    """Folder of the torch to build against; its headers need not be those used at run time."""
    if chosen := os.environ.get("VQVAE2_FAST_TORCH"):
        return Path(chosen)
    if folder := installed_torch():
        return folder
    spec = importlib.util.find_spec("torch")
    if spec and spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations)))
        if is_new_enough(folder):
            return folder
    raise SystemExit("vqvae2_fast: found no torch >= 2.11 to build against: pip install torch")


def check_compiler() -> None:
    chosen = os.environ.get("CXX", "").split()
    candidates = chosen[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(candidate) for candidate in candidates):
        raise SystemExit(NEEDS_COMPILER.format(tried=", ".join(candidates)))


def cuda_wanted() -> str:
    """What VQVAE2_FAST_BUILD_CUDA asks for, as CMakeLists.txt calls it."""
    asked = os.environ.get("VQVAE2_FAST_BUILD_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(
            "VQVAE2_FAST_BUILD_CUDA: expected 1 to demand CUDA kernels, 0 to leave them out, or "
            f"nothing to build them if nvcc is found, got {asked!r}."
        )
    return {"0": "OFF", "1": "ON", "": "AUTO"}[asked]


def python_only() -> bool:
    """Whether VQVAE2_FAST_BUILD asks for an install without kernels."""
    asked = os.environ.get("VQVAE2_FAST_BUILD", "")
    if asked not in ("", "python"):
        raise SystemExit(
            "VQVAE2_FAST_BUILD: expected python to install only the references, or nothing to "
            f"build the kernels, got {asked!r}."
        )
    return asked == "python"


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        check_compiler()
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        cuda = cuda_wanted()
        arguments = [
            "-G",
            "Ninja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            # CMake does not ask a Python for them when it compiles for another platform.
            f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",
            f"-DVQ_MODULE_SUFFIX={output.name.removeprefix('_C')}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DVQ_TORCH_DIR={find_torch()}",
            f"-DVQ_BUILD_CUDA={cuda}",
        ]
        if importlib.util.find_spec("ninja"):
            import ninja

            arguments.append(f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run(["cmake", str(ROOT), *arguments], cwd=build, check=True)
        subprocess.run(["cmake", "--build", ".", *jobs], cwd=build, check=True)


if python_only():
    setup()
else:
    setup(ext_modules=[Extension("vqvae2_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
