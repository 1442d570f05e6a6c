"""`vqvae2-fast check`: it passes here, and finds what is planted."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import sys
from functools import partial
from importlib.metadata import FileHash, PackagePath
from pathlib import Path

import pytest
import torch

from vqvae2_fast import ops
from vqvae2_fast.commands import check
from vqvae2_fast.commands.check import operator_inputs
from vqvae2_fast.commands.common import open_preset
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.choice import ENGINES

needs_kernels = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)


def faults_of(run) -> dict[str, list[str]]:
    """The faults of each part, of a check that has to find some."""
    code, text, _ = run("check --quiet --json")
    assert code == 1
    return {name: part["faults"] for name, part in json.loads(text).items() if part["faults"]}


def test_what_is_installed_here_is_as_it_should_be(run):
    code, text, _ = run("check --quiet")
    assert code == 0
    assert text.rstrip().endswith("Everything is as it should be.")
    assert "fault" not in text
    for part in ("installation", "operators", "engines", "codec"):
        assert f"{part}: " in text


def test_every_public_operator_has_inputs():
    for path in Path(ops.__file__).parent.glob("*/op.py"):
        importlib.import_module(f"vqvae2_fast.ops.{path.parent.name}.op")
    public = {name for name, operator in ops.OPERATORS.items() if not operator.private}
    assert operator_inputs().keys() == public


@needs_kernels
def test_a_kernel_that_gives_another_number_is_found(run, monkeypatch):
    operator = ops.OPERATORS["code_statistics"]
    kernel = operator.kernel

    def wrong(*arguments):
        counts, sums = kernel(*arguments)
        sums[3, 4] += 0.001
        return counts, sums

    monkeypatch.setattr(operator, "kernel", wrong)
    faults = faults_of(run)
    assert list(faults) == ["operators"]
    lowest, highest = faults["operators"]
    assert lowest.startswith("code_statistics at SIMD level scalar: expected result 1")
    assert "got a difference of 0.001" in highest


@needs_kernels
def test_an_engine_that_draws_another_code_is_found(run, monkeypatch):
    draw = ENGINES["cpu"]

    def wrong(prior, interface, request):
        drawn = draw(prior, interface, request)
        drawn.codes[0, -1, -1] = (drawn.codes[0, -1, -1] + 1) % interface.num_embeddings
        return drawn

    monkeypatch.setitem(ENGINES, "cpu", wrong)
    faults = faults_of(run)
    assert list(faults) == ["engines"]
    assert all(fault.startswith("engine cpu at ") for fault in faults["engines"])
    assert "got 1 other code of 64" in faults["engines"][0]


class Installed:
    """What `importlib.metadata` tells of a package in a folder."""

    def __init__(self, folder: Path, needs: tuple[str, ...] = ()) -> None:
        self.folder, self.requires = folder, list(needs)
        (folder / "vqvae2_fast").mkdir()
        (folder / "vqvae2_fast" / "kept.py").write_text("x = 1")
        self.files = [PackagePath("vqvae2_fast/kept.py")]
        digest = hashlib.sha256(b"x = 1").digest()
        self.files[0].hash = FileHash(
            "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
        )
        self.files[0].dist = self

    def locate_file(self, name):
        return self.folder / name


@pytest.fixture
def installed(monkeypatch, tmp_path):
    package = Installed(tmp_path, ('lmdb; extra == "lmdb"', 'onnx>=1.17; extra == "export"'))
    monkeypatch.setattr(check, "distributions", lambda **_: [package])
    monkeypatch.setattr(check, "version", lambda name: {"lmdb": "1.4", "onnx": "1.17.1"}[name])
    return package


def test_an_installed_package_as_it_was_installed_has_no_fault(run, installed):
    assert run("check --quiet")[0] == 0


def test_an_installed_package_that_a_source_tree_hides_is_found(run, monkeypatch, installed):
    (installed.folder / "vqvae2_fast" / "_C.abi3.so").touch()
    monkeypatch.setattr(_native, "module", None)
    (fault,) = faults_of(run)["installation"]
    assert f"expected the package installed in {installed.folder / 'vqvae2_fast'}" in fault


@pytest.mark.parametrize("plant", [Path.unlink, partial(Path.write_text, data="x = 2")])
def test_a_file_that_is_missing_or_of_another_version_is_found(run, installed, plant):
    plant(installed.folder / "vqvae2_fast" / "kept.py")
    (fault,) = faults_of(run)["installation"]
    assert "got 1 changed file, such as vqvae2_fast/kept.py" in fault


@needs_kernels
def test_a_missing_simd_level_is_found(run, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(check, "_levels", lambda: ["scalar"])
    (fault,) = faults_of(run)["installation"]
    assert fault.startswith("expected kernels for avx512, which this processor has, got scalar")


def test_a_package_of_an_extra_that_is_too_old_is_found(run, installed):
    installed.requires.append('lmdb>=1.10; extra == "lmdb"')
    (fault,) = faults_of(run)["installation"]
    assert fault.startswith("expected lmdb 1.10 or later, got 1.4")
    assert "vqvae2_fast[lmdb]" in fault


def test_a_package_of_an_extra_that_does_not_import_is_found(run, monkeypatch, installed):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (fault,) = faults_of(run)["installation"]
    assert fault.startswith("expected onnx 1.17.1 to import, got ModuleNotFoundError")


@needs_kernels
def test_weights_that_are_not_the_packaged_ones_are_found(run, monkeypatch):
    def changed(name, device):
        pipeline = open_preset(name, device)
        with torch.no_grad():
            next(iter(pipeline.priors[0].parameters())).mul_(1.01)
        return pipeline

    monkeypatch.setattr(check, "open_preset", changed)
    (fault,) = faults_of(run)["codec"]
    assert "expected a file with the SHA-256" in fault


def test_an_error_in_one_part_does_not_stop_the_others(run, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(check, "gumbel_noise_reference", broken)
    faults = faults_of(run)
    assert list(faults) == ["engines"]
    assert "expected no error, got RuntimeError: no such instruction" in faults["engines"][0]
