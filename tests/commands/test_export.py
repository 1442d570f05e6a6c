"""`vqvae2-fast export`: whether a program keeps this package's search, and its default name."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.checkpoints import load
from vqvae2_fast.commands import export as module
from vqvae2_fast.sampling.pipeline import Pipeline


@pytest.fixture
def exported(pipelines, run, tmp_path):
    """The encoder of a pipeline, written by the command and read by PyTorch."""

    def export(*options):
        out = tmp_path / "encoder.pt2"
        code, told, error = run("export", pipelines / "classes", "--out", out, *options)
        assert code == 0, error
        assert told.startswith(f"encoder: {out}")
        return torch.export.load(out)

    return export


def own_operators(program):
    return [node.target for node in program.graph.nodes if "vqvae2_fast" in str(node.target)]


def test_a_program_needs_only_pytorch(exported):
    assert own_operators(exported()) == []


def test_own_search_gives_the_codes_of_the_model(exported, pipelines):
    program = exported("--own-search")
    assert own_operators(program)
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = load(pipelines / "classes", expect=Pipeline).vqvae.encode(images)
    assert all(map(torch.equal, program.module()(images), codes))


def test_own_search_is_refused_for_onnx(pipelines, run, tmp_path):
    out = tmp_path / "encoder.onnx"
    code, _, error = run("export", pipelines / "classes", "--out", out, "--own-search")
    assert code == 2
    assert f"--own-search: expected --out NAME.pt2, got {out}" in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("folder.onnx", "is a folder; expected the name of a file"),
        ("file/a.onnx", "file is a file"),
    ],
)
def test_a_destination_that_cannot_be_written_is_refused_before_the_export(
    pipelines, run, tmp_path, monkeypatch, out, expected
):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "export_program", None)
    code, _, error = run("export", pipelines / "classes", "--out", tmp_path / out)
    assert code == 2
    assert expected in error


def test_a_file_that_exists_is_kept(pipelines, run, tmp_path):
    out = tmp_path / "mine.onnx"
    out.write_bytes(b"mine")
    code, _, error = run("export", pipelines / "classes", "--out", out)
    assert code == 2
    assert f"--out: {out} exists already. Add --overwrite to replace it" in error
    assert out.read_bytes() == b"mine"


def test_a_file_that_exists_is_replaced_on_request(pipelines, run, tmp_path):
    out = tmp_path / "old.pt2"
    out.write_bytes(b"old")
    assert run("export", pipelines / "classes", "--out", out, "--overwrite")[0] == 0
    assert torch.export.load(out)


@pytest.mark.parametrize("size", ["0 0", "16 17"])
def test_a_size_that_the_strides_do_not_divide_is_refused(pipelines, run, tmp_path, size):
    out = tmp_path / "encoder.onnx"
    code, _, error = run("export", pipelines / "classes", "--out", out, f"--size {size}")
    assert code == 2
    assert "expected size (height, width), both multiples of 4, got" in error
