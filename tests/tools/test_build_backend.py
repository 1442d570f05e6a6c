import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

BACKEND = Path(__file__).parents[2] / "build_tools" / "vqvae2_fast_build.py"


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.syspath_prepend(BACKEND.parent)
    spec = importlib.util.spec_from_file_location("vqvae2_fast_build", BACKEND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("VQVAE2_FAST_BUILD", raising=False)
    return module


@pytest.fixture
def cmake_requirements(backend, monkeypatch, tmp_path):
    """What the build asks for when `cmake` is a script with these lines."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def requirements(lines):
        script = tmp_path / "cmake"
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
        return [one for one in backend._native_requirements() if one.startswith("cmake")]

    return requirements


def test_a_cmake_that_works_is_used(cmake_requirements):
    assert cmake_requirements("echo cmake version 3.31.6") == []


def test_a_cmake_that_cannot_run_is_replaced(cmake_requirements):
    """As in an environment with pip's cmake, whose Python package build isolation hides."""
    assert cmake_requirements("exit 1") == ["cmake>=3.24"]


def test_a_cmake_that_is_too_old_is_replaced(cmake_requirements):
    assert cmake_requirements("echo cmake version 3.9.6") == ["cmake>=3.24"]


@pytest.fixture
def torch_requirements(backend, monkeypatch, tmp_path):
    """What the build asks for in an environment with a torch of this version."""
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    header = tmp_path / "torch/include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()

    def requirements(version):
        (tmp_path / "torch/version.py").write_text(f"__version__ = '{version}'\n")
        return [one for one in backend._native_requirements() if one.startswith("torch")]

    return requirements


@pytest.mark.parametrize("version", ["2.11.0+cpu", "2.13.1", "3.0.0"])
def test_the_torch_that_is_there_is_used(torch_requirements, version):
    assert torch_requirements(version) == []


@pytest.mark.parametrize("version", ["2.10.0", "2.8.0+cu128", "1.13.1"])
def test_a_torch_that_is_too_old_is_not_built_against(torch_requirements, version):
    """It has some of the stable ABI's headers, with which the kernels do not compile."""
    assert torch_requirements(version) == ["torch>=2.11"]


def test_a_misspelt_kind_of_build_is_refused():
    """It would otherwise compile for minutes what nobody asked for."""
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=BACKEND.parents[1],
        env={**os.environ, "VQVAE2_FAST_BUILD": "Python"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "VQVAE2_FAST_BUILD: expected python" in done.stderr and "'Python'" in done.stderr
