"""The command line from end to end on a small folder of images: what it writes, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from vqvae2_fast.cli import main
from vqvae2_fast.commands.demo import Demo
from vqvae2_fast.commands.tune import Tune

if TYPE_CHECKING:
    from pathlib import Path

MODEL = (
    "--model.image-size 8 8 --model.strides 2 2 --model.hidden-channels 8 "
    "--model.residual-channels 4 --model.num-embeddings 16 --model.embedding-dim 4 "
    "--model.quantize-after 0"
)
PRIOR = "--model.channels 8 --model.residual-channels 8 --model.num-heads 2"
TRAIN = "--train.batch-size 4 --train.save-every 3 --quiet --train.steps 6"


def run(line: str) -> int:
    return main(line.split())


def write_images(folder: Path, count: int = 24) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        name = "cat" if number % 2 else "dog"
        path = folder / ("held_out" if number < 6 else "train") / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(9, 9, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which both stages have been trained by the commands."""
    root = tmp_path_factory.mktemp("cli")
    write_images(root / "images")
    prior = f"train-prior --codes {root}/codes {PRIOR} {TRAIN}"
    for line in (
        f"{train_vqvae(root)} --out {root}/vqvae",
        f"extract --vqvae {root}/vqvae --data {root}/images --out {root}/codes --flip --quiet",
        f"{prior} --level top --out {root}/prior_top",
        f"{prior} --level bottom --out {root}/prior_bottom",
    ):
        assert run(line) == 0, line
    return root


def train_vqvae(place: Path) -> str:
    return f"train-vqvae --data {place}/images {MODEL} {TRAIN}"


def models(place: Path) -> str:
    return f"--vqvae {place}/vqvae --priors {place}/prior_top {place}/prior_bottom"


def test_training_leaves_checkpoints_log_pictures_and_a_result(place):
    run = place / "vqvae"
    names = {path.name for path in run.iterdir()}
    assert names == {
        ".lock",
        "best",
        "checkpoints",
        "log.jsonl",
        "reconstructions.png",
        "curves.png",
        "result.json",
    }
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 6
    assert json.loads((run / "result.json").read_text())["held_out"]["psnr"] > 0
    with Image.open(run / "reconstructions.png") as picture:
        assert picture.width > 200


def test_extract_leaves_both_splits_with_mirrors_in_training(place):
    values = json.loads((place / "codes" / "result.json").read_text())
    assert values["train"]["records"] == 2 * 18
    assert values["held_out"]["records"] == 6


def test_train_prior_takes_sizes_and_classes_from_the_codes(place, capsys):
    assert main(["info", str(place / "prior_bottom"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["config"]["size"] == [4, 4]
    assert values["config"]["condition_sizes"] == [[2, 2]]
    assert values["config"]["num_embeddings"] == 16
    assert values["config"]["num_classes"] == 2
    assert values["class_names"] == ["cat", "dog"]
    assert values["step"] == 6


def test_resume_goes_on_to_more_steps(place, tmp_path):
    line = f"{train_vqvae(place)} --out {tmp_path}/run"
    assert run(line) == 0
    assert run(f"{line} --train.steps 8 --resume") == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 8


@pytest.mark.parametrize(
    ("number", "code", "cause"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")],
)
def test_a_signal_ends_training_with_its_exit_code(
    place, tmp_path, monkeypatch, number, code, cause, error_of
):
    monkeypatch.setattr(
        "vqvae2_fast.training.loop.learning_rate",
        lambda step, config: os.kill(os.getpid(), number) or 1e-3,
    )
    text = error_of(f"{train_vqvae(place)} --out {tmp_path}/run", code)
    assert f"stopped by {cause} after step 1" in text
    assert "Continue with resume and the same options." in text
    assert (tmp_path / "run" / "checkpoints" / "step-000000001" / "state.json").exists()


def test_reconstruct_leaves_the_error_and_a_picture(place, tmp_path):
    out = tmp_path / "reconstructions"
    assert run(f"reconstruct --vqvae {place}/vqvae --data {place}/images --out {out}") == 0
    assert json.loads((out / "result.json").read_text())["images"] == 6
    assert (out / "reconstructions.png").exists()


def test_evaluate_sums_the_levels(place, tmp_path):
    out = tmp_path / "evaluation"
    assert run(f"evaluate {models(place)} --data {place}/images --quiet --out {out}") == 0
    values = json.loads((out / "metrics.json").read_text())
    levels = values["levels"]
    assert values["bits_per_image"] == pytest.approx(
        levels["top"]["bits_per_image"] + levels["bottom"]["bits_per_image"]
    )
    assert values["marginal_bits_per_image"] > 0
    assert (out / "rate.png").exists()


def test_info_lists_the_presets(capsys):
    assert main(["info", "--presets"]) == 0
    text = capsys.readouterr().out
    assert "emoji32: 32x32x3, maps 8x8, 16x16 of 256 codes" in text
    assert "ffhq1024: 1024x1024x3, maps 32x32, 64x64, 128x128" in text


def test_info_names_the_best_checkpoint_of_a_run(place, capsys):
    run = place / "vqvae"
    assert main(["info", str(run), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert best["metric"] == "psnr"
    assert main(["info", str(run)]) == 0
    text = capsys.readouterr().out
    assert re.search(
        rf"^best: psnr \S+ at step {best['step']}; it is kept in {run}/best$", text, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sample --vqvae {0}/prior_top --priors {0}/prior_top", "expected a VQ-VAE at"),
        (
            "sample --vqvae {0}/vqvae --priors {0}/prior_top",
            "expected priors to be 2, one for each level",
        ),
        ("sample --preset emoji33", "error: the package has no weights of 'emoji33'"),
        ("extract --vqvae {0}", "error: expected --vqvae to be the folder of a checkpoint"),
        (
            "sample --vqvae {0}/vqvae --priors {0}/codes",
            "error: expected --priors to be the folder of",
        ),
        ("train-vqvae --preset emoji33", "expected the name of a preset, one of emoji32"),
        ("train-prior --codes {0}/codes --level middle", "--level: expected one"),
        ("train-prior --codes {0}/images", "as `vqvae2-fast extract` leaves it; "),
        ("train-prior --codes {0}/codes/train", "train is a code store itself"),
        ("train-prior --codes {0}/codess", "codess does not exist."),
        ("extract --vqvae {0}/vqvae --out {0}/codes/result.json", "--out: "),
        (
            "sample --vqvae {0}/vqvae --priors {0}/prior_bottom {0}/prior_top",
            "prior_bottom is the prior of the bottom level, and stands where that of the top level "
            "is expected. Name them in the order top, bottom.",
        ),
        ("extract --vqvae {0}/vqvae --out {0}/codes", "holds codes already"),
    ],
)
def test_a_wrong_request_is_told_without_a_traceback(
    place, tmp_path, monkeypatch, line, message, error_of
):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(line.format(place))


def test_a_run_that_diverges_exits_with_1(place, tmp_path, error_of):
    steep = "--train.learning-rate 1e30 --train.warmup-steps 0"
    text = error_of(f"{train_vqvae(place)} {steep} --out {tmp_path}/run", code=1)
    assert "expected finite numbers" in text
    assert "Lower learning_rate (now 1e+30)" in text


def test_priors_of_another_vqvae_are_refused(place, tmp_path, error_of):
    assert run(f"{train_vqvae(place)} --train.seed 1 --out {tmp_path}/other") == 0
    top, bottom = place / "prior_top", place / "prior_bottom" / "best"
    line = f"sample --vqvae {tmp_path}/other --priors"
    message = error_of(f"{line} {top} {bottom}")
    assert "prior_top was trained on codes of VQ-VAE" in message
    assert "Use the VQ-VAE that those codes were extracted with" in message
    message = error_of(f"{line} {bottom} {top}")
    assert "best was trained on codes of VQ-VAE" in message


def test_a_prior_does_not_go_on_with_codes_of_another_vqvae(place, tmp_path, error_of):
    shutil.copytree(place / "prior_top", tmp_path / "run")
    codes = tmp_path / "codes"
    shutil.copytree(place / "codes", codes)
    for split in ("train", "held_out"):
        manifest = json.loads((codes / split / "manifest.json").read_text())
        changed = {**manifest, "checkpoint_hash": "0123456789abcdef"}
        (codes / split / "manifest.json").write_text(json.dumps(changed))
    message = error_of(f"train-prior --codes {codes} --level top --resume --out {tmp_path}/run")
    assert f"on which {tmp_path / 'run'} was trained, got those of VQ-VAE 0123456789ab" in message


def test_an_unfinished_store_is_not_trained_on(place, tmp_path, error_of):
    codes = tmp_path / "codes"
    shutil.copytree(place / "codes", codes)
    manifest = json.loads((codes / "train" / "manifest.json").read_text())
    changed = {**manifest, "shards": [], "records": 0}
    (codes / "train" / "manifest.json").write_text(json.dumps(changed))
    message = error_of(["train-prior", "--codes", str(codes)])
    assert "lacks 36 of its records" in message
    assert "extract --resume" in message


def test_a_run_of_the_other_stage_is_refused_by_both_names(place, error_of):
    message = error_of(f"train-prior --codes {place}/codes --out {place}/vqvae --resume")
    assert "is the run of a VQ-VAE (stage 1), this trains a prior (stage 2, pixelsnail)" in message
    line = f"train-vqvae --data {place}/images {MODEL} --out {place}/prior_top --resume"
    message = error_of(line)
    assert "is the run of a prior (stage 2, pixelsnail), this trains a VQ-VAE (stage 1)" in message


def test_tensorboard_gets_both_kinds_of_figures(place, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="needs vqvae2_fast[tensorboard]")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run(f"{train_vqvae(place)} --tensorboard --out {tmp_path}/run") == 0
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert {"train/loss", "held_out/psnr"} <= set(found.Tags()["scalars"])


@pytest.mark.parametrize(("command", "resumes"), [("demo", True), ("tune", False)])
def test_ctrl_c_names_resume_where_a_command_has_it(command, resumes, monkeypatch, capsys):
    def stopped(self):
        raise KeyboardInterrupt

    for kind in (Demo, Tune):
        monkeypatch.setattr(kind, "run", stopped)
    assert main([command]) == 130
    assert ("--resume" in capsys.readouterr().err) == resumes
