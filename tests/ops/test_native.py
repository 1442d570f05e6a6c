"""The compiled module: what is said where it cannot be loaded, and how functions take arguments."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vqvae2_fast.ops import _native

needs_module = pytest.mark.skipif(_native.module is None, reason="needs the compiled module")


def last_line_of_failing_import(preparation: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{preparation}\nimport vqvae2_fast"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("version", ["2.10.1+cu126", "1.13.0"])
def test_a_torch_that_is_too_old_is_refused_in_one_sentence(version):
    said = last_line_of_failing_import(f"import torch; torch.__version__ = '{version}'")
    assert said == (
        f"ImportError: vqvae2_fast: expected PyTorch 2.11 or later, found {version}: "
        "pip install -U 'torch>=2.11'"
    )


def test_versions_are_compared_as_numbers():
    for version in ("2.11.0", "2.100.0a0+git", "3.0", "10.2"):
        _native._check_torch(version)


def test_a_module_for_another_machine_is_refused_in_one_sentence(tmp_path):
    """As the loader refuses a wheel whose processor, C library or PyTorch is another."""
    path = tmp_path / "_C.abi3.so"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(57))
    said = last_line_of_failing_import(f"""
import importlib.machinery, importlib.util, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "vqvae2_fast._C":
            loader = importlib.machinery.ExtensionFileLoader(name, {str(path)!r})
            return importlib.util.spec_from_loader(name, loader)

sys.meta_path.insert(0, Finder)
""")
    assert said.startswith(
        "ImportError: vqvae2_fast: the compiled module was built for another system, processor or "
        f"PyTorch and does not load here ({path}: "
    )
    assert said.endswith("build it on this machine with `pip install .` from the source tree.")


@needs_module
@pytest.mark.skipif(sys.platform == "win32", reason="no kernels there")
def test_one_file_serves_every_python():
    assert _native.module.__file__.endswith("_C.abi3.so")


@needs_module
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda m: m.set_simd_level(), TypeError, "missing argument name"),
        (lambda m: m.simd_level("scalar"), TypeError, "too many arguments"),
        (lambda m: m.set_simd_level("scalar", name="avx2"), TypeError, "two values of argument"),
        (lambda m: m.set_simd_level("scalar", level=1), TypeError, "unknown name"),
        (lambda m: m.set_simd_level(7), TypeError, "bad argument type"),
        (lambda m: m.set_simd_level("none such"), RuntimeError, "got 'none such'"),
        (lambda m: m.content_hashes([(0,)], 1), IndexError, "index out of range"),
        (lambda m: m.content_hashes([(-1, 0)], 1), OverflowError, "negative"),
        (lambda m: m.content_hashes(1, 1), TypeError, "has no len"),
        (lambda m: m.SamplerPlan({}, [], 1), TypeError, "expected a dict"),
        (lambda m: m.SamplerPlan({}, {}, 1), ValueError, "sampler: bad plan"),
    ],
)
def test_bad_arguments_raise(call, error, message):
    with pytest.raises(error, match=message):
        call(_native.module)


@needs_module
def test_arguments_go_by_place_or_by_name():
    memory = torch.arange(4)
    blocks = [(memory.data_ptr(), 32)]
    by_place = _native.module.content_hashes(blocks, 1)
    assert _native.module.content_hashes(threads=1, blocks=blocks) == by_place


@needs_module
def test_calls_keep_no_references():
    blocks = [(torch.arange(4).data_ptr(), 0), (0, 0)]
    objects = (None, blocks, blocks[0], "scalar")

    def counts() -> list[int]:
        return [sys.getrefcount(one) for one in objects]

    def calls() -> None:
        _native.module.content_hashes(blocks, threads=1)
        _native.module.set_simd_level(_native.module.simd_level())
        _native.module.build_info()
        with pytest.raises(TypeError):
            _native.module.content_hashes(blocks, blocks)

    calls()
    before = counts()
    for _ in range(100):
        calls()
    assert all(abs(now - then) < 50 for now, then in zip(counts(), before, strict=True))
