"""The command demo on fewer emoji and steps."""

from __future__ import annotations

import json

from vqvae2_fast.cli import main
from vqvae2_fast.commands import demo
from vqvae2_fast.data import ImageTensorDataset, load_emoji


def test_demo_leaves_its_folder(tmp_path, capsys, monkeypatch, error_of):
    def few_emoji(split):
        emoji = load_emoji(split)
        return ImageTensorDataset(emoji.images[::8], emoji.labels[::8], emoji.class_names)

    monkeypatch.setattr(demo, "load_emoji", few_emoji)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--scale", "0.001", "--quiet"]) == 0
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "report.html",
        "reconstructions.png",
        "samples.png",
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
    assert html.count("data:image/png;base64,") == 4
    assert str(out / "report.html") in capsys.readouterr().out
    before = json.loads((out / "metrics.json").read_text())["held_out"]
    again = ["demo", "--out", str(out), "--scale", "0.001", "--quiet"]
    assert "Add --resume to continue it, or name another" in error_of(again)
    assert main([*again, "--resume"]) == 0
    assert json.loads((out / "metrics.json").read_text())["held_out"] == before


def test_a_number_of_steps_is_no_scale_of_the_demo(tmp_path, error_of):
    message = error_of(["demo", "--out", str(tmp_path / "demo"), "--scale", "500"])
    assert "--scale: expected a factor above 0 and up to 20, got 500" in message
    assert not (tmp_path / "demo").exists()
