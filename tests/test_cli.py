"""The command line from end to end on a small folder of images: what it writes, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import vqvae2_fast
from vqvae2_fast.cli import _parse, main
from vqvae2_fast.commands import demo
from vqvae2_fast.commands.info import Info
from vqvae2_fast.commands.train_vqvae import TrainVQVAE
from vqvae2_fast.data import ImageTensorDataset, load_emoji
from vqvae2_fast_command import COMMANDS

if TYPE_CHECKING:
    from pathlib import Path

MODEL = [
    "--model.image-size",
    "8",
    "8",
    "--model.strides",
    "2",
    "2",
    "--model.hidden-channels",
    "8",
    "--model.residual-channels",
    "4",
    "--model.num-embeddings",
    "16",
    "--model.embedding-dim",
    "4",
]
TRAIN = ["--train.steps", "6", "--train.batch-size", "4", "--train.save-every", "3", "--quiet"]


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
    data = ["--data", str(root / "images")]
    runs = [
        ["train-vqvae", *data, *MODEL, *TRAIN, "--out", str(root / "vqvae")],
        [
            "extract",
            "--vqvae",
            str(root / "vqvae"),
            *data,
            "--out",
            str(root / "codes"),
            "--flip",
            "--quiet",
        ],
        *(
            [
                "train-prior",
                "--codes",
                str(root / "codes"),
                "--level",
                level,
                "--model.channels",
                "8",
                "--model.residual-channels",
                "8",
                "--model.num-heads",
                "2",
                "--out",
                str(root / f"prior_{level}"),
                *TRAIN,
            ]
            for level in ("top", "bottom")
        ),
    ]
    for arguments in runs:
        assert main(arguments) == 0, arguments
    return root


def models(place: Path) -> list[str]:
    return [
        "--vqvae",
        str(place / "vqvae"),
        "--priors",
        str(place / "prior_top"),
        str(place / "prior_bottom"),
    ]


def error_of(capsys, arguments: list[str], code: int = 2) -> str:
    assert main(arguments) == code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


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
    data = ["--data", str(place / "images")]
    out = ["--out", str(tmp_path / "run")]
    assert main(["train-vqvae", *data, *MODEL, *TRAIN, *out]) == 0
    more = [*TRAIN[2:], "--train.steps", "8"]
    assert main(["train-vqvae", *data, *MODEL, *more, *out, "--resume"]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 8


def test_a_run_is_not_written_over(place, capsys):
    data = ["--data", str(place / "images")]
    arguments = ["train-vqvae", *data, *MODEL, *TRAIN, "--out", str(place / "vqvae")]
    assert "holds a run already. Add --resume" in error_of(capsys, arguments)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_with_its_exit_code(
    place, tmp_path, capsys, monkeypatch, number, code
):
    monkeypatch.setattr(
        "vqvae2_fast.training.loop.learning_rate",
        lambda step, config: os.kill(os.getpid(), number) or 1e-3,
    )
    arguments = ["train-vqvae", "--data", str(place / "images"), *MODEL, *TRAIN]
    text = error_of(capsys, [*arguments, "--out", str(tmp_path / "run")], code)
    assert "stopped by signal" in text
    assert "Continue with --resume" in text
    assert (tmp_path / "run" / "checkpoints" / "step-000000001" / "state.json").exists()


def test_sample_draws_from_a_vqvae_and_its_priors(place, tmp_path):
    out = tmp_path / "samples"
    assert main(["sample", *models(place), "--n", "4", "--out", str(out), "--quiet"]) == 0
    names = sorted(path.name for path in (out / "images").glob("*.png"))
    assert names == ["00000.png", "00001.png", "00002.png", "00003.png"]
    with Image.open(out / "images" / "00000.png") as image:
        assert image.size == (8, 8)


def test_reconstruct_leaves_the_error_and_a_picture(place, tmp_path):
    out = tmp_path / "reconstructions"
    arguments = ["reconstruct", "--vqvae", str(place / "vqvae"), "--data", str(place / "images")]
    assert main([*arguments, "--out", str(out)]) == 0
    assert json.loads((out / "result.json").read_text())["images"] == 6
    assert (out / "reconstructions.png").exists()


def test_evaluate_sums_the_levels(place, tmp_path):
    out = tmp_path / "evaluation"
    arguments = ["evaluate", *models(place), "--data", str(place / "images"), "--quiet"]
    assert main([*arguments, "--out", str(out)]) == 0
    values = json.loads((out / "metrics.json").read_text())
    levels = values["levels"]
    assert values["bits_per_image"] == pytest.approx(
        levels["top"]["bits_per_image"] + levels["bottom"]["bits_per_image"]
    )
    assert values["marginal_bits_per_image"] > 0
    assert (out / "rate.png").exists()


def test_info_describes_the_installation(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nearest_code"]


def test_info_lists_the_presets(capsys):
    assert main(["info", "--presets"]) == 0
    text = capsys.readouterr().out
    assert "emoji32: 32x32x3, maps 8x8, 16x16 of 256 codes" in text
    assert "ffhq1024: 1024x1024x3, maps 32x32, 64x64, 128x128" in text


def test_info_describes_a_code_store(place, capsys):
    assert main(["info", str(place / "codes" / "train")]) == 0
    assert "records: 36" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--label", "x"], "one of --preset, --pipeline, or --vqvae"),
        (
            ["sample", "--vqvae", "{place}/prior_top", "--priors", "{place}/prior_top"],
            "expected a VQ-VAE at",
        ),
        (
            ["sample", "--vqvae", "{place}/vqvae", "--priors", "{place}/prior_top"],
            "--priors: expected 2, one for each level",
        ),
        (["info", "{place}/nowhere"], "does not exist"),
        (["info", "{place}/images"], "images has no config.json"),
        (["train-vqvae", "--data", "nowhere"], "--data: expected the folder of a data set"),
        (["train-vqvae", "--preset", "emoji33"], "--preset: expected one of"),
        (["train-vqvae", "--data", "{place}/images"], "smaller than --model.image-size 32x32"),
        (["train-prior", "--codes", "{place}/codes", "--level", "middle"], "--level: expected one"),
        (["train-prior", "--codes", "{place}/images"], "as `vqvae2-fast extract` leaves it; "),
        (["train-prior", "--codes", "{place}/codes/train"], "train is a code store itself"),
        (["train-vqvae", "--out", "{place}/codes/result.json"], "result.json is a file; expected"),
        (["extract", "--vqvae", "{place}/vqvae", "--out", "{place}/codes/result.json"], "--out: "),
        (
            [
                "sample",
                "--vqvae",
                "{place}/vqvae",
                "--priors",
                "{place}/prior_bottom",
                "{place}/prior_top",
            ],
            "prior_bottom: expected a prior of num_embeddings",
        ),
        (["extract", "--vqvae", "{place}/vqvae", "--out", "{place}/codes"], "holds codes already"),
        (["info", "--device", "abacus"], "--device: expected"),
        (["info", "--threads", "-1"], "--threads: expected 0 or more"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_wrong_request_is_told_without_a_traceback(
    place, tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    filled = []
    for argument in arguments:
        filled += models(place) if argument == "{models}" else [argument.format(place=place)]
    assert message in error_of(capsys, filled)


def test_debug_shows_the_traceback(capsys):
    assert main(["info", "/nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_there(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: vqvae2-fast {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_all_are_listed(arguments, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: vqvae2-fast COMMAND")
    for name, (_, what) in COMMANDS.items():
        assert f"  {name} " in text
        assert what in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = re.sub(r"[│|╭╮╰╯─]", " ", capsys.readouterr().out)
    options = re.split(r"\n {1,3}(?=--[a-z])", text)[1:]
    assert options
    for option in options:
        words = re.sub(r"^\S+|\(default:.*|\{.*?\}|\b[A-Z]+\b|[^\w ]", " ", option, flags=re.DOTALL)
        assert words.split(), option


@pytest.mark.parametrize(("option", "flip"), [("--flip", True), ("--no-flip", False)])
@pytest.mark.parametrize("preset", ["emoji32", "photos64"])
def test_a_switch_is_set_either_way_whatever_the_preset_says(preset, option, flip):
    arguments = ["--preset", preset, option]
    assert _parse(TrainVQVAE, "train-vqvae", arguments).flip is flip


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vqvae2-fast {vqvae2_fast.__version__}\n"


def test_an_unknown_command_is_refused_with_the_list(capsys):
    assert "expected a command, one of demo, train-vqvae" in error_of(capsys, ["trian"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.steps", "0"], "error: --train.steps must be >= 1, got 0"),
        (["--model.strides", "3"], "error: each of --model.strides must be a power of two"),
        (["--train.average-decay", "2"], "error: --train.average-decay must be in [0, 1), got 2"),
    ],
    ids=["a word", "inside", "an underscore"],
)
def test_errors_of_configurations_name_flags(arguments, message, capsys):
    assert message in error_of(capsys, ["train-vqvae", *arguments])


def test_a_reader_that_has_enough_is_no_error():
    command = [sys.executable, "-c", "from vqvae2_fast.cli import main; raise SystemExit(main())"]
    with subprocess.Popen(
        [*command, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_an_unknown_option_exits_with_2():
    with pytest.raises(SystemExit) as stop:
        main(["info", "--colour"])
    assert stop.value.code == 2


def test_a_run_that_diverges_exits_with_1(place, tmp_path, capsys):
    arguments = [
        "train-vqvae",
        "--data",
        str(place / "images"),
        *MODEL,
        *TRAIN,
        "--train.learning-rate",
        "1e30",
        "--train.warmup-steps",
        "0",
        "--out",
        str(tmp_path / "run"),
    ]
    text = error_of(capsys, arguments, code=1)
    assert "expected finite numbers" in text
    assert "Lower --train.learning-rate (now 1e+30)" in text


def test_priors_of_another_vqvae_are_refused(place, tmp_path, capsys):
    again = [
        "train-vqvae",
        "--data",
        str(place / "images"),
        *MODEL,
        *TRAIN,
        "--train.seed",
        "1",
        "--out",
        str(tmp_path / "other"),
    ]
    assert main(again) == 0
    priors = [str(place / "prior_top"), str(place / "prior_bottom" / "best")]
    message = error_of(capsys, ["sample", "--vqvae", str(tmp_path / "other"), "--priors", *priors])
    assert "prior_top was trained on codes of VQ-VAE" in message
    assert "Use the VQ-VAE that those codes were extracted with" in message
    message = error_of(
        capsys, ["sample", "--vqvae", str(tmp_path / "other"), "--priors", *priors[::-1]]
    )
    assert "best was trained on codes of VQ-VAE" in message


def test_a_prior_does_not_go_on_with_codes_of_another_vqvae(place, tmp_path, capsys):
    shutil.copytree(place / "prior_top", tmp_path / "run")
    codes = tmp_path / "codes"
    shutil.copytree(place / "codes", codes)
    for split in ("train", "held_out"):
        manifest = json.loads((codes / split / "manifest.json").read_text())
        changed = {**manifest, "checkpoint_hash": "0123456789abcdef"}
        (codes / split / "manifest.json").write_text(json.dumps(changed))
    arguments = ["train-prior", "--codes", str(codes), "--level", "top", "--resume"]
    message = error_of(capsys, [*arguments, "--out", str(tmp_path / "run")])
    assert f"on which {tmp_path / 'run'} was trained, got those of VQ-VAE 0123456789ab" in message


def test_an_unfinished_store_is_not_trained_on(place, tmp_path, capsys):
    codes = tmp_path / "codes"
    shutil.copytree(place / "codes", codes)
    manifest = json.loads((codes / "train" / "manifest.json").read_text())
    changed = {**manifest, "shards": [], "records": 0}
    (codes / "train" / "manifest.json").write_text(json.dumps(changed))
    message = error_of(capsys, ["train-prior", "--codes", str(codes)])
    assert "lacks 36 of its 36 records" in message
    assert "extract --resume" in message


def test_a_run_of_the_other_stage_is_refused_by_both_names(place, capsys):
    codes = ["--codes", str(place / "codes")]
    message = error_of(capsys, ["train-prior", *codes, "--out", str(place / "vqvae"), "--resume"])
    assert "is the run of a VQ-VAE (stage 1), this trains a prior (stage 2)" in message
    out = ["--data", str(place / "images"), *MODEL, "--out", str(place / "prior_top"), "--resume"]
    message = error_of(capsys, ["train-vqvae", *out])
    assert "is the run of a prior (stage 2), this trains a VQ-VAE (stage 1)" in message


def test_tensorboard_gets_both_kinds_of_figures(place, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="needs vqvae2_fast[tensorboard]")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    arguments = ["train-vqvae", "--data", str(place / "images"), *MODEL, *TRAIN]
    assert main([*arguments, "--tensorboard", "--out", str(tmp_path / "run")]) == 0
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert {"train/loss", "held_out/psnr"} <= set(found.Tags()["scalars"])


def test_tensorboard_without_its_package_fails_with_the_remedy(
    place, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("vqvae2_fast.runs.tensorboard.find_spec", lambda name: None)
    arguments = ["train-vqvae", "--data", str(place / "images"), *MODEL, *TRAIN, "--tensorboard"]
    message = error_of(capsys, [*arguments, "--out", str(tmp_path / "run")], code=1)
    assert "pip install 'vqvae2_fast[tensorboard]'" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completions_name_commands_and_options(shell, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--completion", shell])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "vqvae2-fast" in text
    for word in ("train-vqvae", "extract", "--shard-records", "--dry-run"):
        assert word in text


@pytest.mark.parametrize("arguments", [[], ["fish"], ["bash", "x"]])
def test_completions_of_other_shells_are_refused(arguments, capsys):
    assert "expected bash or zsh" in error_of(capsys, ["--completion", *arguments])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (TypeError("x"), 2),
        (FileNotFoundError(2, "x"), 2),
        (PermissionError(13, "x"), 2),
        (OSError(28, "x"), 1),
        (OSError(5, "x"), 1),
        (RuntimeError("x"), 1),
        (MemoryError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_exit_codes(error, code, capsys, monkeypatch):
    def fail(self):
        raise error

    monkeypatch.setattr(Info, "run", fail)
    error_of(capsys, ["info"], code)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "cannot write x: No space left"), "error: cannot write x: No space left\n"),
        (PermissionError(13, "Permission denied", "x/y"), "error: x/y: Permission denied\n"),
        (FileNotFoundError("load: x does not exist"), "error: load: x does not exist\n"),
    ],
    ids=["ours", "the system's", "without a number"],
)
def test_an_error_of_the_system_is_told_by_path_and_words(error, text, capsys, monkeypatch):
    def fail(self):
        raise error

    monkeypatch.setattr(Info, "run", fail)
    assert text in error_of(capsys, ["info"], 1 if error.errno == 28 else 2)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_escape_sequences_in_an_error_are_shown(capsys, debug):
    assert main(["extract", "--vqvae", "x\x1b[2Jy", *debug]) == 2
    error = capsys.readouterr().err
    assert "x\\x1b[2Jy" in error
    assert "\x1b" not in error


def test_a_warning_is_shown_without_its_line_of_source(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(
        Info,
        "run",
        lambda command: shown.append(
            warnings.formatwarning("skipped 1, set batch_size=2", UserWarning, "file.py", 1)
        ),
    )
    monkeypatch.setattr("vqvae2_fast.cli._print_result", lambda result, as_json: 0)
    assert main(["info"]) == 0
    assert shown == ["vqvae2-fast: warning: skipped 1, set --batch-size=2\n"]
    assert "file.py" in warnings.formatwarning("x", UserWarning, "file.py", 1)


def test_an_error_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(Info, "run", lambda self: {}["a mistake in the package"])
    with pytest.raises(KeyError):
        main(["info"])


def test_demo_leaves_its_folder(tmp_path, capsys, monkeypatch):
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
    assert "Add --resume to continue it, or name another" in error_of(capsys, again)
    assert main([*again, "--resume"]) == 0
    assert json.loads((out / "metrics.json").read_text())["held_out"] == before


def test_a_number_of_steps_is_no_scale_of_the_demo(tmp_path, capsys):
    message = error_of(capsys, ["demo", "--out", str(tmp_path / "demo"), "--scale", "500"])
    assert "--scale: expected a factor above 0 and up to 20, got 500" in message
    assert not (tmp_path / "demo").exists()
