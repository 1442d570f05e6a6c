"""Builds what a release consists of, on one x86-64 Linux machine: `pip install '.[wheels]'`, then

    python build_tools/wheels.py --out dist                  # everything
    python build_tools/wheels.py sdist x86_64 --out dist     # some of it
    python build_tools/wheels.py --check WHEEL --out dist    # tags and checks a wheel that is there

sdist:    the source distribution; every wheel is built from it
x86_64:   manylinux, with the CUDA kernels where nvcc is found
aarch64:  manylinux, by the cross compiler aarch64-linux-gnu-g++
macos:    arm64, by the clang of the package `ziglang` (install it too; nothing runs the result)
any:      without compiled kernels, for every other platform

A wheel with kernels is for the Python that runs this script, since pybind11 does not keep to the
limited API, and for every PyTorch from 2.11 on, by its stable ABI. auditwheel gives a Linux wheel
the oldest manylinux tag that its symbols allow, which depends on this machine's C library; the
release workflow builds in the container of an older one. Kernels for other processors are linked
against PyTorch's libraries for them, which pip downloads (0.1 to 0.4 GB), or, with `--stub-torch`,
against empty libraries of the same names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("libtorch", "libtorch_cpu")
# The torch that other platforms' wheels are linked against; its libraries do not depend on Python.
TORCH, PYTHON = "2.13.0", "3.11"


@dataclass(frozen=True)
class Target:
    """A platform that this one compiles for: its tag, its torch, and CMake's words for it."""

    host_platform: str
    torch_platforms: tuple[str, ...]
    suffix: str
    compiler: str
    toolchain: str


TARGETS = {
    "aarch64": Target(
        "linux-aarch64",
        ("manylinux_2_28_aarch64",),
        ".so",
        "aarch64-linux-gnu-g++",
        "set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_SYSTEM_PROCESSOR aarch64)\n"
        "set(CMAKE_STRIP aarch64-linux-gnu-strip)\n",
    ),
    # The oldest macOS that PyTorch's own wheels are for.
    "macos": Target(
        "macosx-14.0-arm64",
        ("macosx_14_0_arm64",),
        ".dylib",
        f"{sys.executable} -m ziglang c++ -target aarch64-macos.14.0",
        "set(CMAKE_SYSTEM_NAME Darwin)\nset(CMAKE_SYSTEM_PROCESSOR arm64)\n"
        'set(CMAKE_INSTALL_NAME_TOOL true)\nset(CMAKE_STRIP "" CACHE FILEPATH "")\n',
    ),
}
KINDS = ("sdist", "x86_64", *TARGETS, "any")


def run(*command: str | Path, **environment: str) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True, env=os.environ | environment)


def build_sdist(out: Path) -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT)
    return max(out.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)


def unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def build_wheel(tree: Path, folder: Path, **environment: str) -> Path:
    """The wheel of a source tree, in a folder of its own."""
    options = ("--no-build-isolation", "--no-deps", "--quiet", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, tree, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def torch_of(target: Target, work: Path, stub: bool) -> Path:
    """A folder with PyTorch's headers and the two libraries of a platform to link against."""
    folder = work / "torch"
    (folder / "lib").mkdir(parents=True)
    if stub:
        installed = Path(sysconfig.get_path("purelib")) / "torch"
        if not installed.exists():
            import torch

            installed = Path(torch.__file__).parent
        # They are the same on all platforms.
        (folder / "include").symlink_to(installed / "include")
        for name in LIBRARIES:
            library = folder / "lib" / f"{name}{target.suffix}"
            soname = f"-Wl,-soname,{library.name}" if target.suffix == ".so" else ""
            install_name = f"-install_name @rpath/{library.name}" if not soname else ""
            flags = f"{soname} {install_name} -shared -x c /dev/null".split()
            run(*target.compiler.split(), *flags, "-o", library)
        return folder
    platforms = [option for one in target.torch_platforms for option in ("--platform", one)]
    where = ("--only-binary=:all:", "--no-deps", "--python-version", PYTHON, *platforms)
    run(sys.executable, "-m", "pip", "download", "-q", *where, "-d", work, f"torch=={TORCH}")
    with zipfile.ZipFile(next(work.glob("torch-*.whl"))) as wheel:
        libraries = {f"torch/lib/{name}{target.suffix}" for name in LIBRARIES}
        members = [n for n in wheel.namelist() if n.startswith("torch/include/") or n in libraries]
        wheel.extractall(work, members)
    return folder


def build_elsewhere(tree: Path, target: Target, work: Path, stub: bool) -> Path:
    """The wheel of another platform, by a cross compiler."""
    compiler = work / "c++"
    # Zig's linker crashes at -bundle. Python loads a dynamic library as well.
    no_bundle = 'for a; do shift; [ "$a" = -bundle ] && a=-shared; set -- "$@" "$a"; done'
    compiler.write_text(f'#!/bin/sh\n{no_bundle}\nexec {target.compiler} "$@"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    toolchain = work / "toolchain.cmake"
    toolchain.write_text(f"{target.toolchain}set(CMAKE_CXX_COMPILER {compiler})\n")
    return build_wheel(
        tree,
        work / "wheel",
        CMAKE_TOOLCHAIN_FILE=str(toolchain),
        VQVAE2_FAST_TORCH=str(torch_of(target, work, stub)),
        VQVAE2_FAST_BUILD_CUDA="0",
        _PYTHON_HOST_PLATFORM=target.host_platform,
        SETUPTOOLS_EXT_SUFFIX=".so",  # every Python of the platform accepts it
    )


def checked(wheel: Path, out: Path, work: Path) -> Path:
    """The wheel in `out`, with its manylinux tag if it is for Linux."""
    if "linux" in wheel.name:
        # PyTorch's libraries are those that the process has loaded.
        exclude = [option for name in LIBRARIES for option in ("--exclude", f"{name}.so")]
        run("auditwheel", "repair", *exclude, "--wheel-dir", work / "repaired", wheel)
        (wheel,) = (work / "repaired").glob("*.whl")
        run("auditwheel", "show", wheel)
    return Path(shutil.copy(wheel, out))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--stub-torch", action="store_true", help="download no torch to link with")
    parser.add_argument("--check", type=Path, metavar="WHEEL", help="build none, check this one")
    options = parser.parse_args()
    if unknown := sorted(set(options.kinds) - set(KINDS)):
        parser.error(f"expected KINDs of {', '.join(KINDS)}, got {', '.join(unknown)}")
    kinds = options.kinds or KINDS
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.check:
            print(checked(options.check, options.out, work))
            return
        sdist = build_sdist(options.out if "sdist" in kinds else work)
        for kind in (kind for kind in kinds if kind != "sdist"):
            own = work / kind
            tree = unpacked(sdist, own / "tree")
            if kind == "any":
                wheel = build_wheel(tree, own / "wheel", VQVAE2_FAST_BUILD="python")
            elif kind == "x86_64":
                cuda = "1" if shutil.which("nvcc") else "0"
                wheel = build_wheel(tree, own / "wheel", VQVAE2_FAST_BUILD_CUDA=cuda)
            else:
                wheel = build_elsewhere(tree, TARGETS[kind], own, options.stub_torch)
            print(f"{kind}: {checked(wheel, options.out, own).name}", flush=True)


if __name__ == "__main__":
    main()
