import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

BACKEND = Path(__file__).parents[2] / "build_tools" / "vqvae2_fast_build.py"


@pytest.fixture
def cmake_requirements(monkeypatch, tmp_path):
    """What the build asks for when `cmake` is a script with these lines."""
    spec = importlib.util.spec_from_file_location("vqvae2_fast_build", BACKEND)
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    monkeypatch.delenv("VQVAE2_FAST_BUILD", raising=False)
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
