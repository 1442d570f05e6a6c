"""`vqvae2-fast evaluate`: what it measures, of samples too, and what it refuses."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.models import tiny_pipeline
from PIL import Image

from vqvae2_fast.checkpoints import save
from vqvae2_fast.cli import main
from vqvae2_fast.commands import evaluate as module
from vqvae2_fast.metrics.distances import MEASURES
from vqvae2_fast.models.classifier import Classifier, ClassifierConfig
from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from pathlib import Path

BITS = ("promised_bits_per_image", "bits_per_image", "file_bits_per_image")
CLASSES = ("cat", "cow", "dog")
NUMBER = 200
FEW_FILES = "--codec-images 4 --compressed-images 4"  # files take longer than all else


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("evaluation")
    generator = np.random.default_rng(0)
    for side, count in (("train", NUMBER), ("held_out", NUMBER)):
        for number in range(count):
            path = root / "images" / side / CLASSES[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(256, size=(4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save(path)
    save(tiny_pipeline(), root / "pipeline", class_names=CLASSES)
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig((16, 16), 3, 3, "small", 8)).eval()
    save(model, root / "judge", class_names=CLASSES)
    return root


def test_images_of_other_classes_are_refused(place, tmp_path, capsys):
    for side in ("train", "held_out"):
        for name in ("car", "cow"):
            shutil.copytree(place / "images" / side / "cow", tmp_path / "other" / side / name)
    assert evaluate(place, tmp_path / "out", "--data", str(tmp_path / "other")) == 2
    error = capsys.readouterr().err
    assert "--data: the priors know 3 classes (cat, cow, dog), and the images have 2 (car" in error
    assert not (tmp_path / "out").exists()


def evaluate(place: Path, out: Path, *options: str) -> int:
    """Each option may have several words."""
    line = f"evaluate --pipeline {place}/pipeline --data {place}/images --out {out} --quiet"
    return main([*line.split(), *" ".join(options).split()])


def sampling_options(place: Path) -> str:
    """Of an evaluation of samples and files too."""
    judge = f"--classifier {place}/judge --features classifier"
    return f"--images {NUMBER} {judge} {FEW_FILES}"


@pytest.fixture(scope="module")
def found(place) -> Path:
    out = place / "out"
    assert evaluate(place, out, sampling_options(place), "--cas-epochs 1") == 0
    return out


def test_all_measures_are_there(found):
    values = json.loads((found / "metrics.json").read_text())
    rows = values["distances"]["classifier"]["rows"]
    assert set(rows) == {"floor", "reconstructed", "sampled", "sampled_vs_reconstructed"}
    assert set(rows["floor"]) == {measure.name for measure in MEASURES}
    assert set(rows["floor"]) >= {
        "frechet",
        "spatial",
        "kernel",
        "score",
        "precision",
        "recall",
        "density",
        "coverage",
    }
    assert all(e["low"] <= e["value"] <= e["high"] for row in rows.values() for e in row.values())
    assert [row["trained_on"] for row in values["cas"]] == ["real", "reconstructed", "sampled"]
    assert [point["images"] for point in values["rejection"]["points"]][:3] == [200, 101, 50]
    for level in values["levels"].values():
        gap = level["nats_per_code"] - level["train_nats_per_code"]
        assert level["overfitting_gap"] == pytest.approx(gap)
    assert values["bits_per_dim"] == pytest.approx(values["bits_per_image"] / (3 * 16 * 16))
    assert values["reconstruction"]["ssim"] <= 1


def test_the_report_shows_every_picture_and_what_was_left_out(found):
    text = (found / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 5
    for words in ("FD-classifier", "floor", "trained on", "share kept"):
        assert words in text
    for name in ("samples", "best", "trade_off", "rate", "reconstructions"):
        assert (found / f"{name}.png").exists()


def test_classifiers_see_groups_of_classes(place, tmp_path):
    names = ("farm - cow", "pet - cat", "pet - dog")
    for side in ("train", "held_out"):
        for name in names:
            source = place / "images" / side / name.partition(" - ")[2]
            shutil.copytree(source, tmp_path / "images" / side / name)
    save(tiny_pipeline(), tmp_path / "pipeline", class_names=names)
    model = Classifier(ClassifierConfig((16, 16), 3, 2, "small", 8)).eval()
    save(model, tmp_path / "judge", class_names=("farm", "pet"))
    out = tmp_path / "out"
    assert evaluate(tmp_path, out, sampling_options(tmp_path), "--cas-epochs 1 --groups") == 0
    values = json.loads((out / "metrics.json").read_text())
    for row in values["cas"]:
        assert len(row["tested_on"]["real"]["by_class"]) == 2


def test_the_score_is_trained_on_as_many_images_as_asked_for(place, tmp_path):
    shutil.copytree(place, tmp_path / "more", ignore=shutil.ignore_patterns("out"))
    for number in range(0, 120, 3):
        cat = tmp_path / "more" / "images" / "train" / "cat" / f"{number}.png"
        shutil.copy(cat, cat.with_stem(f"{number}-again"))
    asked = f"--images {NUMBER} --features classifier --classifier {place}/judge --cas-epochs 1"
    assert evaluate(tmp_path / "more", tmp_path / "out", asked, "--cas-images 240", FEW_FILES) == 0
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["images"] for row in values["cas"]] == [240] * 3
    assert values["sampled_images"] == NUMBER


def test_samples_without_a_class_are_refused_before_any_training(place, tmp_path, capsys):
    drawn = tmp_path / "drawn"
    line = f"sample --pipeline {place}/pipeline --n {NUMBER} --out {drawn} --quiet --label none cat"
    assert main(line.split()) == 0
    asked = f"--images {NUMBER} --samples {drawn} --features classifier --classifier {place}/judge"
    assert evaluate(place, tmp_path / "out", asked, "--cas-epochs 1") == 2
    assert "got 100 of 200 in" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("cas_*"))


def reached(*_, **__):
    """In place of the work of minutes."""
    raise AssertionError("began before it was known that something is missing")


@pytest.mark.parametrize("count", [0, 5])
def test_missing_samples_are_told_of_before_any_work(place, tmp_path, capsys, monkeypatch, count):
    drawn = tmp_path / "drawn"
    if count:
        line = f"sample --pipeline {place}/pipeline --n {count} --out {drawn} --quiet"
        assert main(line.split()) == 0
    monkeypatch.setattr(module, "evaluate_pipeline", reached)
    asked = f"--images {NUMBER} --samples {drawn} --features classifier --classifier {place}/judge"
    assert evaluate(place, tmp_path / "out", asked) == 2
    error = capsys.readouterr().err
    assert "--samples: expected at least 200 samples, the number of --images or" in error
    assert f"got {count} in {drawn}" in error
    assert not (tmp_path / "out").exists()


def test_samples_of_other_classes_are_told_of_before_any_work(place, tmp_path, capsys, monkeypatch):
    drawn = tmp_path / "drawn"
    line = f"sample --pipeline {place}/pipeline --n {NUMBER} --out {drawn} --quiet"
    assert main(line.split()) == 0
    index = drawn / "samples.jsonl"
    index.write_text(index.read_text().replace('"cat"', '"whale"'))
    monkeypatch.setattr(module, "evaluate_pipeline", reached)
    assert evaluate(place, tmp_path / "out", f"--images {NUMBER} --samples {drawn}") == 2
    assert "classes that the training images do not have: whale" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_samples_of_another_seed_are_told_of_before_any_work(place, found, capsys, monkeypatch):
    monkeypatch.setattr(module, "evaluate_pipeline", reached)
    assert evaluate(place, found, sampling_options(place), "--seed 1") == 2
    error = capsys.readouterr().err
    assert f"--out: {found}/samples holds samples that an earlier evaluation drew" in error
    assert "seed: 0 there, 1 now" in error
    assert "--resume" not in error


@pytest.mark.parametrize("command", ["evaluate", "reconstruct"])
def test_the_results_of_a_run_are_not_replaced(place, tmp_path, run, files, command):
    (tmp_path / "checkpoints" / "step-000000001").mkdir(parents=True)
    (tmp_path / "result.json").write_text("{}")
    before = files(tmp_path)
    models = f"--{'pipeline' if command == 'evaluate' else 'vqvae'} {place}/pipeline"
    code, _, error = run(f"{command} {models} --data {place}/images --out {tmp_path}")
    assert code == 2
    assert f"--out: {tmp_path} holds a training run" in error
    assert files(tmp_path) == before


def test_samples_are_used_again_by_an_evaluation_of_more_or_fewer(place, tmp_path):
    out = tmp_path / "out"
    judge = f"--features classifier --classifier {place}/judge"
    asked = f"{judge} --train-images 0 --images {NUMBER} {FEW_FILES}"
    index = out / "samples" / "samples.jsonl"
    shutil.copytree(place, tmp_path / "more", ignore=shutil.ignore_patterns("out"))
    for number in range(0, NUMBER, 5):  # so that 240 images can be asked for
        image = tmp_path / "more" / "images" / "train" / CLASSES[number % 3] / f"{number}.png"
        shutil.copy(image, image.with_stem(f"{number}-again"))
    score = "--cas-epochs 1 --cas-images"
    assert evaluate(tmp_path / "more", out, asked) == 0
    first = index.read_bytes()
    assert evaluate(tmp_path / "more", out, asked, f"{score} 240") == 0
    assert index.read_bytes().startswith(first)
    more = index.read_bytes()
    assert more.count(b"\n") == 240
    assert evaluate(tmp_path / "more", out, asked) == 0
    assert index.read_bytes() == more


def test_the_score_of_other_epochs_is_trained_anew(place, tmp_path):
    asked = f"--images {NUMBER} --features classifier --classifier {place}/judge --cas-epochs"
    for epochs in (2, 1):
        assert evaluate(place, tmp_path / "out", f"{asked} {epochs}", FEW_FILES) == 0
        assert (tmp_path / f"out/work/cas_{NUMBER}_{epochs}/real/checkpoints").exists()


@pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")
def test_files_are_compressed_by_level(found):
    values = json.loads((found / "metrics.json").read_text())
    top, whole = values["compressed"]
    assert (top["levels"], whole["levels"]) == (["top"], ["top", "bottom"])
    assert (top["images"], whole["images"]) == (4, 4)
    for files in (top, whole):
        coder = files["bits_per_image"] - files["promised_bits_per_image"]
        assert 0 < coder < 64 * len(files["levels"])
        assert files["bits_per_image"] < files["file_bits_per_image"]
    assert top["bits_per_image"] < whole["bits_per_image"]
    assert top["measured"]["psnr"] < whole["measured"]["psnr"]  # the rest of it is drawn
    report = (found / "report.html").read_text()
    assert "top and bottom" in report and "promised bits per image" in report


def test_other_pipelines_files_stand_beside(place, found, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(module, "plot_rate", lambda path, own, others: shown.update(others))
    monkeypatch.setattr(module, "write_evaluation", lambda *_, **__: None)
    files = [{"levels": ["top"], "images": 1, **dict.fromkeys(BITS, 8.0)}]
    files[0]["measured"] = {"mse": 0.1, "mse_unit": 0.025, "psnr": 16.0}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.json").write_text(json.dumps({"compressed": files}))
    options = "--held-out-images 2 --train-images 0 --codec-images 1 --compressed-images 0"
    assert evaluate(place, tmp_path / "out", options, f"--beside {tmp_path}/other") == 0
    assert shown["other"][0].measured.psnr == 16.0
    assert shown["other"][0].levels == ("top",)


def test_two_processes_leave_what_one_leaves(place, found, run_in_two_processes, tmp_path, files):
    out = tmp_path / "out"
    line = f"evaluate --pipeline {place}/pipeline --data {place}/images --quiet --out {out}"
    said = run_in_two_processes(line, sampling_options(place))
    assert str(out / "metrics.json") in said[0]
    assert said[1] == ""
    one, two = (json.loads((path / "metrics.json").read_text()) for path in (found, out))
    for values in (one, two):
        del values["distances"]["classifier"]["images_per_second"]
        del values["rejection"]  # its judge may be another one
        values.pop("cas", None)
    assert two == one
    assert files(out / "samples") == files(found / "samples")


def test_two_processes_measure_reconstructions_like_one(place, run, run_in_two_processes, tmp_path):
    command = ["reconstruct", "--vqvae", str(place / "pipeline"), "--data", str(place / "images")]
    command += ["--split", "all", "--quiet", "--out"]  # 400 images: four batches
    assert run(*command, tmp_path / "one")[0] == 0
    said = run_in_two_processes(*command, str(tmp_path / "two"))
    assert said[1] == ""
    results = [(tmp_path / name / "result.json").read_text() for name in ("one", "two")]
    assert results[0] == results[1]


def test_part_of_the_held_out_images_can_be_measured(place, tmp_path):
    out = tmp_path / "out"
    options = "--held-out-images 20 --train-images 0 --codec-images 2 --compressed-images 0"
    assert evaluate(place, out, options) == 0
    values = json.loads((out / "metrics.json").read_text())
    assert values["images"] == 20
    assert "train_images" not in values and "compressed" not in values
    assert "20 held-out images" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--held-out-images", "-1"), "held_out_images: expected 0 or more, got -1"),
        (("--images", "200", "--neighbours", "0"), "neighbours: expected 1 or more, got 0"),
        (("--images", "200", "--neighbours", "180"), "--neighbours: expected 179 at most for"),
        (("--images", "199"), "expected 200 or more, got 199"),
        (("--images", "201"), "expected 200 at most, got 201"),
        (("--images", "200", "--cas-images", "200"), "--cas-images: expected --cas-epochs too"),
        (("--images", "200", "--cas-epochs", "1", "--cas-images", "201"), "expected 200 at most"),
        (("--classifier", "JUDGE"), "without which --classifier would have no effect, got 0"),
        (("--features", "classifier"), "without which --features would have no effect"),
        (("--inception-weights", "x"), "without which --inception-weights would have no effect"),
        (("--neighbours", "3", "--groups"), "without which --groups, --neighbours would have no"),
        (
            ("--images", "200", "--features", "classifier"),
            "classifier must be a trained one for the features of",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(place, tmp_path, capsys, arguments, text):
    arguments = tuple(str(place / "judge") if a == "JUDGE" else a for a in arguments)
    assert evaluate(place, tmp_path / "out", *arguments) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("images", ["90", "200"])
def test_a_set_too_small_to_compare_samples_with_is_told_of_any_number(
    place, tmp_path, capsys, images
):
    data = ("--data", str(place / "images" / "held_out"))
    assert evaluate(place, tmp_path / "out", *data, "--images", images) == 2
    error = capsys.readouterr().err
    assert "--images: expected a larger set" in error
    assert "Leave --images out" in error
