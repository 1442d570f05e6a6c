"""The command demo on fewer avatars and steps."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace

import pytest

from vqvae2_fast.cli import main
from vqvae2_fast.commands import demo
from vqvae2_fast.data import ImageTensorDataset, load_small_avatars
from vqvae2_fast.training import recipe


@pytest.fixture(autouse=True)
def few_avatars(monkeypatch):
    def few(split):
        avatars = load_small_avatars(split)
        return ImageTensorDataset(avatars.images[::8], avatars.labels[::8], avatars.class_names)

    monkeypatch.setattr(demo, "load_small_avatars", few)


def test_demo_leaves_its_folder(tmp_path, capsys, error_of):
    out = tmp_path / "a demo"
    assert main(["demo", "--out", str(out), "--scale", "0.001", "--quiet"]) == 0
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "report.html",
        "reconstructions.png",
        "samples.png",
        "nearest.png",
        "completions.png",
        "curves.png",
        "rate.png",
        "metrics.json",
        "vqvae",
        "prior_top",
        "prior_bottom",
        "pipeline",
        "codes",
    }
    assert set(json.loads((out / "metrics.json").read_text())["targets"]) == {
        "psnr >= 26 dB",
        "each codebook >= 90 % used",
        "bits an image <= 1500",
        "psnr above WebP's at these bits",
    }
    html = (out / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 6
    told = capsys.readouterr().out
    assert str(out / "report.html") in told
    assert f"draw more: vqvae2-fast sample --pipeline '{out / 'pipeline'}' --label moods" in told
    before = json.loads((out / "metrics.json").read_text())["held_out"]
    again = ["demo", "--out", str(out), "--scale", "0.001", "--quiet"]
    assert "Continue it with resume, or name another" in error_of(again)
    said = error_of([*again, "--resume", "--scale", "0.002"])
    assert "was begun, of 1 steps of the VQ-VAE, got 0.002, of 2. Name another folder" in said
    assert "since it was resumed" not in html
    assert main([*again, "--resume"]) == 0
    html = (out / "report.html").read_text()
    assert re.search(r"Trained in \S+ minutes since it was resumed", html)
    assert "<th>seconds since it was resumed</th>" in html
    assert "\nseconds since it was resumed: vqvae " in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text())["held_out"] == before


def test_a_number_of_steps_is_no_scale_of_the_demo(tmp_path, error_of):
    message = error_of(["demo", "--out", str(tmp_path / "demo"), "--scale", "500"])
    assert "--scale: expected a factor above 0 and up to 20, got 500" in message
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("part", ["vqvae", "prior_bottom"])
def test_a_stopped_demo_says_how_to_continue_and_continues(tmp_path, monkeypatch, capsys, part):
    make = recipe.vqvae_stage if part == "vqvae" else recipe.prior_stage

    def stopped_at_once(*args, **kwargs):
        stage = make(*args, **kwargs)
        if kwargs.get("level") == 0:
            return stage

        def loss(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            return stage.loss(*args, **kwargs)

        return replace(stage, loss=loss)

    out = tmp_path / "demo"
    command = ["demo", "--out", str(out), "--scale", "0.002"]
    with monkeypatch.context() as patch:
        patch.setattr(recipe, make.__name__, stopped_at_once)
        assert main(command) == 128 + signal.SIGTERM
    saved = out / part / "checkpoints" / "step-000000001"
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped by SIGTERM after step 1; {saved} holds it. " in said
    assert "Continue with resume and the same options." in said
    assert not (out / "report.html").exists()

    def never(*args, **kwargs):
        raise AssertionError("a step that was done is done again")

    with monkeypatch.context() as patch:
        if part == "prior_bottom":
            stage = recipe.vqvae_stage
            patch.setattr(
                recipe, "vqvae_stage", lambda *args, **kw: replace(stage(*args, **kw), loss=never)
            )
        assert main([*command, "--resume"]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
