"""`reconstruct` and the models that it takes; what it measures is tested with `evaluate`."""

from __future__ import annotations

import json

import pytest

from vqvae2_fast.checkpoints.pretrained import pretrained_folder


def test_a_preset_is_the_pipeline_in_the_package(tmp_path, run):
    found = []
    for models in (("--preset", "emoji32"), ("--vqvae", pretrained_folder("emoji32"))):
        code, said, _ = run(
            *("reconstruct", *models, "--data emoji:subcategories --n 2 --quiet --json"),
            *("--out", tmp_path),
        )
        assert code == 0
        found.append(json.loads(said))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("models", "got"), [("", "neither"), ("--preset emoji32 --vqvae vqvae", "both")]
)
def test_one_model_is_expected(tmp_path, run, models, got):
    code, _, error = run(f"reconstruct {models} --data emoji --out", tmp_path / "out")
    assert code == 2
    assert f"expected one of --vqvae and --preset, got {got}." in error
    assert not (tmp_path / "out").exists()
