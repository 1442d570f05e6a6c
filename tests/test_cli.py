"""The command line from end to end on a small folder of images: what it writes, what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from vqvae2_fast.cli import main
from vqvae2_fast.commands import demo
from vqvae2_fast.data import ImageTensorDataset, load_emoji

if TYPE_CHECKING:
    from pathlib import Path

MODEL = [
    "--model.image-size", "8", "8", "--model.strides", "2", "2", "--model.hidden-channels", "8",
    "--model.residual-channels", "4", "--model.num-embeddings", "16", "--model.embedding-dim", "4",
]  # fmt: skip
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
        ["extract", "--vqvae", str(root / "vqvae"), *data, "--out", str(root / "codes"),
         "--flip", "--quiet"],
        *(["train-prior", "--codes", str(root / "codes"), "--level", level, "--model.channels", "8",
           "--model.residual-channels", "8", "--model.num-heads", "2",
           "--out", str(root / f"prior_{level}"), *TRAIN] for level in ("top", "bottom")),
    ]  # fmt: skip
    for arguments in runs:
        assert main(arguments) == 0, arguments
    return root


def models(place: Path) -> list[str]:
    return ["--vqvae", str(place / "vqvae"), "--priors", str(place / "prior_top"),
            str(place / "prior_bottom")]  # fmt: skip


def error_of(capsys, arguments: list[str], code: int = 2) -> str:
    assert main(arguments) == code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_training_leaves_checkpoints_log_pictures_and_a_result(place):
    run = place / "vqvae"
    names = {path.name for path in run.iterdir()}
    assert names == {"checkpoints", "log.jsonl", "reconstructions.png", "curves.png", "result.json"}
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


def test_sample_draws_rows_of_the_named_class(place, tmp_path, capsys):
    out = tmp_path / "samples"
    assert (
        main(
            [
                "sample",
                *models(place),
                "--label",
                "DO",
                "--n",
                "3",
                "--temperature",
                "0.9",
                "0.7",
                "--out",
                str(out),
                "--json",
            ]
        )
        == 0
    )
    values = json.loads(capsys.readouterr().out)
    assert [image["label"] for image in values["images"]] == ["dog"] * 3
    assert len(list((out / "images").glob("*.png"))) == 3
    with Image.open(out / "images" / "00000.png") as image:
        assert image.size == (8, 8)
    assert (out / "samples.png").exists()


def test_a_sample_is_the_same_image_in_any_batch(place, tmp_path):
    images = []
    for batch_size in ("1", "4"):
        out = tmp_path / batch_size
        arguments = ["sample", *models(place), "--n", "2", "--batch-size", batch_size, "--quiet"]
        assert main([*arguments, "--out", str(out)]) == 0
        images.append([path.read_bytes() for path in sorted((out / "images").iterdir())])
    assert len(images[0]) == 4
    assert images[0] == images[1]


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
        (["sample", "--label", "x"], "either --pipeline, or --vqvae"),
        (["sample", "{models}", "--label", "mouse"], "class name (cat, dog), got 'mouse'"),
        (["sample", "{models}", "--label", "2"], "a number below 2"),
        (["sample", "{models}", "--n", "0"], "--n: expected 1 or more, got 0"),
        (["sample", "{models}", "--engine", "warp"], "expected engine one of"),
        (["sample", "--vqvae", "{place}/prior_top", "--priors", "{place}/prior_top"],
         "expected a VQ-VAE at"),
        (["sample", "--vqvae", "{place}/vqvae", "--priors", "{place}/prior_top"],
         "--priors: expected 2, one a level"),
        (["info", "{place}/nowhere"], "does not exist"),
        (["info", "{place}/images"], "is no checkpoint"),
        (["train-vqvae", "--data", "nowhere"], "--data: expected `emoji` or a folder"),
        (["train-vqvae", "--preset", "emoji33"], "preset: expected one of"),
        (["train-vqvae", "--data", "{place}/images"], "smaller than image_size 32x32"),
        (["train-prior", "--codes", "{place}/codes", "--level", "middle"], "--level: expected one"),
        (["train-prior", "--codes", "{place}/images"], "no code store at"),
        (["extract", "--vqvae", "{place}/vqvae", "--out", "{place}/codes"], "holds codes already"),
        (["info", "--device", "abacus"], "--device: expected"),
        (["info", "--threads", "-1"], "--threads: expected 0 or more"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
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


@pytest.mark.parametrize("command", ["", "demo", "train-vqvae", "extract", "train-prior", "sample",
                                     "reconstruct", "evaluate", "info"])  # fmt: skip
def test_help_is_there(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert "usage: vqvae2-fast" in capsys.readouterr().out


def test_an_unknown_option_exits_with_2():
    with pytest.raises(SystemExit) as stop:
        main(["info", "--colour"])
    assert stop.value.code == 2


def test_a_run_that_diverges_exits_with_1(place, tmp_path, capsys):
    arguments = [
        "train-vqvae", "--data", str(place / "images"), *MODEL, *TRAIN,
        "--train.learning-rate", "1e30", "--train.warmup-steps", "0",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    text = error_of(capsys, arguments, code=1)
    assert "expected finite numbers" in text
    assert "Lower learning_rate (now 1e+30)" in text


def test_demo_leaves_its_folder(tmp_path, capsys, monkeypatch):
    def few_emoji(split):
        emoji = load_emoji(split)
        return ImageTensorDataset(emoji.images[::8], emoji.labels[::8], emoji.class_names)

    monkeypatch.setattr(demo, "load_emoji", few_emoji)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--steps", "0.001", "--quiet"]) == 0
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "report.html", "reconstructions.png", "samples.png", "curves.png", "rate.png",
        "metrics.json", "vqvae", "prior_top", "prior_bottom", "pipeline", "codes",
    }  # fmt: skip
    assert set(json.loads((out / "metrics.json").read_text())["targets"]) == {
        "psnr >= 26 dB", "each codebook >= 90 % used", "bits an image <= 1500",
        "psnr above WebP's at these bits",
    }  # fmt: skip
    html = (out / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 4
    assert str(out / "report.html") in capsys.readouterr().out
