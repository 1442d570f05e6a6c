"""`vqvae2-fast sample`: guidance where images have no class to follow."""

from __future__ import annotations

from dataclasses import replace

from vqvae2_fast.checkpoints import load, save


def recommending(pipelines, path):
    """The pipeline with classes, which recommends a guidance scale and a temperature."""
    own = {"temperature": [0.8, 0.7], "guidance_scale": [2.0, 1.5]}
    save(replace(load(pipelines / "classes"), recommended=own), path)
    return path


def test_without_a_class_a_recommended_guidance_scale_is_not_used(pipelines, tmp_path, run, column):
    path = recommending(pipelines, tmp_path / "pipeline")
    code, said, _ = run(
        *("sample --quiet --n 1 --label none --pipeline", path, "--out", tmp_path / "out")
    )
    assert code == 0
    assert column(tmp_path / "out", "settings")[0]["guidance_scale"] == [1.0, 1.0]
    assert "guidance" not in said
    assert "--temperature: as the pipeline recommends" in said


def test_beside_a_class_images_without_one_keep_the_guidance_scale(
    pipelines, tmp_path, run, column
):
    path = recommending(pipelines, tmp_path / "pipeline")
    code, said, _ = run(
        *("sample --quiet --n 2 --label none cat --pipeline", path, "--out", tmp_path / "out")
    )
    assert code == 0
    assert column(tmp_path / "out", "settings")[1]["guidance_scale"] == [2.0, 1.5]
    assert "guidance scale 2 and 1.5" in said.replace("\n", " ")


def test_a_guidance_scale_of_1_goes_with_images_without_a_class(sample, tmp_path):
    assert sample(tmp_path, "--n 1 --label none --guidance-scale 1") == 0
