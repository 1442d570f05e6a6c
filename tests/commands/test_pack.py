"""`vqvae2-fast pack`, `vqvae2_fast.pack`, and `info` of what they leave."""

from __future__ import annotations

import json

import pytest
import torch

import vqvae2_fast
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.engines.cpu_description import Description
from vqvae2_fast.testing.configs import SMALL_VQVAE
from vqvae2_fast.testing.pipelines import tiny_pipeline

pytestmark = pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")


@pytest.fixture
def pipeline(tmp_path):
    """The path of a saved pipeline."""
    vqvae2_fast.save(tiny_pipeline(0), tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_every_prior_of_a_pipeline_is_packed(run, pipeline, monkeypatch):
    expected = vqvae2_fast.sample_images(vqvae2_fast.load(pipeline), 2, seed=1)
    code, out, _ = run(f"pack {pipeline} --json")
    assert code == 0
    files = [pipeline / f"prior_{level}/packed-cpu.safetensors" for level in ("top", "bottom")]
    assert json.loads(out)["files"] == {str(file): file.stat().st_size for file in files}

    def refuse(self, module, threads):
        raise AssertionError("the weights were packed")

    monkeypatch.setattr(Description, "packed", refuse)
    images = vqvae2_fast.sample_images(vqvae2_fast.load(pipeline), 2, seed=1)
    assert torch.equal(images, expected)


def test_info_names_the_engines_that_files_are_for(run, pipeline):
    assert "packed_for" not in json.loads(run(f"info {pipeline} --json")[1])
    run(f"pack {pipeline} --engine cpu_int8")
    run(f"pack {pipeline}")
    assert json.loads(run(f"info {pipeline} --json")[1])["packed_for"] == ["cpu", "cpu_int8"]
    (pipeline / "prior_top/packed-cpu.safetensors").unlink()
    assert json.loads(run(f"info {pipeline} --json")[1])["packed_for"] == ["cpu_int8"]
    prior = json.loads(run(f"info {pipeline / 'prior_bottom'} --json")[1])
    assert prior["packed_for"] == ["cpu", "cpu_int8"]


def test_a_vqvae_has_nothing_to_pack(run, tmp_path):
    vqvae2_fast.save(VQVAE2(SMALL_VQVAE), tmp_path / "vqvae")
    code, _, error = run(f"pack {tmp_path / 'vqvae'}")
    assert code == 2
    assert "expected a pipeline or a prior" in error
    assert "found a VQVAE2" in error


def test_w8a8_needs_a_calibration(run, pipeline):
    code, _, error = run(f"pack {pipeline} --engine cpu_w8a8")
    assert code == 2
    assert "vqvae2-fast calibrate" in error
    assert not list(pipeline.rglob("packed-*"))


def test_nothing_is_written_unless_all_priors_can_be_packed(pipeline):
    loaded = vqvae2_fast.load(pipeline)
    codes = torch.zeros(2, *loaded.priors[0].config.size, dtype=torch.int64)
    vqvae2_fast.calibrate(loaded.priors[0], [(codes, None, None)])
    vqvae2_fast.save(loaded, pipeline)
    with pytest.raises(ValueError, match="no calibration"):
        vqvae2_fast.pack(pipeline, "cpu_w8a8")
    assert not list(pipeline.rglob("packed-*"))


def test_info_leaves_out_files_of_other_weights(run, pipeline):
    run(f"pack {pipeline}")
    top, bottom = (pipeline / f"prior_{n}/packed-cpu.safetensors" for n in ("top", "bottom"))
    top.write_bytes(bottom.read_bytes())
    assert "packed_for" not in json.loads(run(f"info {pipeline} --json")[1])


def test_an_unknown_engine_is_named_with_those_there_are(pipeline):
    for engine, told in (("cuda", "'cuda'"), (["cpu"], r"\['cpu'\]")):
        with pytest.raises(ValueError, match=rf"one of \('cpu', .*'cpu_w8a8'\), got {told}\."):
            vqvae2_fast.pack(pipeline, engine)


def test_a_folder_that_cannot_be_written_is_named(pipeline, monkeypatch):
    def full(file, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqvae2_fast.sampling.engines.cpu_file.write_all", full)
    with pytest.raises(OSError, match="cannot write .*packed-cpu.safetensors: No space"):
        vqvae2_fast.pack(pipeline)
    assert not [path for path in pipeline.rglob("*") if "packed" in path.name]
