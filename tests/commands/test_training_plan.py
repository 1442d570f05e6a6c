"""What a training prints before it begins: time, memory, and what is impossible."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from vqvae2_fast.commands import plan
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training import cost
from vqvae2_fast.training.cost import StepCost

MODEL = [
    *("--model.image-size", 8, 8, "--model.strides", 2, 2, "--model.hidden-channels", 8),
    *("--model.residual-channels", 4, "--model.num-embeddings", 16, "--model.embedding-dim", 4),
]
SHORT = ["--train.steps", 4, "--train.batch-size", 4]


@pytest.fixture
def vqvae_run(images, tmp_path, run):
    """Trains a VQ-VAE into tmp_path/run with more options."""

    def call(*more: object) -> tuple[int, str, str]:
        return run(
            *("train-vqvae", "--data", images, *MODEL, *SHORT, "--out", tmp_path / "run", *more)
        )

    return call


@pytest.fixture
def memory(monkeypatch):
    """Sets how many bytes seem to be free."""
    return lambda free: monkeypatch.setattr(plan, "free_memory", lambda device: free)


def test_a_training_says_what_it_takes_before_it_begins(vqvae_run):
    code, _, said = vqvae_run()
    assert code == 0
    for part in ("4 steps of 4 on cpu, 0.889 epochs of 18 items", "cropped to their centre"):
        assert part in said
    assert said.index("with activations about") < said.index("time: about") < said.index("4/4")


def test_a_run_of_more_than_an_hour_names_the_steps_of_an_hour(vqvae_run, monkeypatch):
    monkeypatch.setattr(plan, "measure_step", lambda stage, config: StepCost(1800.0, 0, 1))
    code, told, _ = vqvae_run("--dry-run")
    assert code == 0
    assert "about 2 hours, 1,800 s per step" in told
    assert "steps=2 would take an hour" in told


def test_a_model_that_cannot_fit_is_refused_before_it_is_made(codes, tmp_path, run, memory):
    memory(10**9)
    made = []
    built = PixelSNAIL.__init__

    def watched(self, config):
        built(self, config)
        made.append(next(self.parameters()).device.type)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PixelSNAIL, "__init__", watched)
        code, _, error = run(
            *("train-prior", "--codes", codes, "--out", tmp_path / "run"),
            *("--model.channels", 2048, "--model.residual-channels", 2048),
        )
    assert code == 2
    assert "GiB for weights, gradients, optimiser and average), and 953.7 MiB are free" in error
    assert "Use a smaller model: another --preset" in error
    assert "--ignore-memory" in error
    assert set(made) == {"meta"}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("free", [25 * 10**7, 35 * 10**7])  # for two and for three of the four
def test_activations_that_do_not_fit_name_the_batch_that_does(vqvae_run, memory, monkeypatch, free):
    monkeypatch.setattr(plan, "measure_step", lambda stage, config: StepCost(0.1, 0, 10**8))
    memory(free)
    code, _, error = vqvae_run()
    assert code == 2
    assert "Use batch_size=2 and accumulate=2" in error
    assert vqvae_run("--ignore-memory")[0] == 0


def test_micro_batches_of_a_global_batch_are_counted(vqvae_run, memory, monkeypatch):
    """In a step of 12 there are three of four images."""
    monkeypatch.setattr(cost, "_extrapolated", lambda parts, batch_size: (600.0, 0, 10**8))
    step = "--train.global-batch", 12
    planned = "--dry-run", "--ignore-memory", *step
    assert "1,800 s per step" in vqvae_run(*planned)[1]
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "3")  # each process then takes one of them
        for alone in ("rank0_first", "run_on_rank0_and_broadcast"):
            patch.setattr(Ranks, alone, lambda self, make: make())
        assert " 600 s per step" in vqvae_run(*planned)[1]
    memory(25 * 10**7)
    code, _, error = vqvae_run(*step)
    assert code == 2
    assert "Use batch_size=2, or try" in error


def test_timing_changes_no_weight(vqvae_run, tmp_path, monkeypatch):
    assert vqvae_run()[0] == 0
    weights = (tmp_path / "run/best/model.safetensors").read_bytes()
    monkeypatch.setattr(plan, "measure_step", lambda stage, config: StepCost(0.1, 0, 1))
    assert vqvae_run("--overwrite")[0] == 0
    assert (tmp_path / "run/best/model.safetensors").read_bytes() == weights


def test_overwrite_begins_anew_with_another_batch(vqvae_run, tmp_path):
    assert vqvae_run()[0] == 0
    code, _, error = vqvae_run("--train.batch-size", 5)
    assert code == 2
    assert "Continue it with resume, delete it with overwrite" in error
    assert vqvae_run("--train.batch-size", 5, "--train.steps", 2, "--overwrite")[0] == 0
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-000000002"]
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {2}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--flip"], "flip=False, got True"),
        (["--train.batch-size", 5], "global_batch=4, got 5"),
        (["--held-out-fraction", 0.5, "--data", "{flat}"], "images=.{12}, got .{12}"),
    ],
    ids=["flip", "batch", "data"],
)
def test_resume_with_other_data_is_refused_or_accepted_in_the_log(
    changed, named, vqvae_run, images, tmp_path, capsys
):
    assert vqvae_run()[0] == 0
    changed = [str(value).format(flat=images / "train") for value in changed]
    more = ["--resume", "--train.steps", 5, *changed]
    code, _, error = vqvae_run(*more)
    assert code == 2
    assert re.search(named, error)
    assert "accept_changed" in error
    assert vqvae_run(*more, "--accept-changed")[0] == 0
    lines = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    noted = [line for line in lines if "accepted_changes" in line]
    assert noted[0]["step"] == 4
    assert "got" in noted[0]["accepted_changes"][0]


def test_a_run_continued_with_other_settings_is_warned_of(vqvae_run):
    assert vqvae_run("--train.learning-rate", 0.125)[0] == 0
    more = ("--resume", "--train.steps", 6, "--train.learning-rate", 0.25)
    warning = "so far the run had steps=4, learning_rate=0.125"
    assert warning in vqvae_run(*more, "--dry-run")[1]
    code, _, said = vqvae_run(*more)
    assert code == 0
    assert f"{warning}; it is continued with steps=6, learning_rate=0.25" in said
    assert "so far the run had" not in vqvae_run(*more)[2]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--train.batch-size", 5], "global_batch=4, got 5"),
        (["--model.embedding-dim", 2], "embedding_dim 4, not 2"),
        (["--flip"], "flip=False, got True"),
        (["--train.steps", 3], "expected steps=4 or more"),
    ],
    ids=["batch", "model", "data", "steps"],
)
def test_a_dry_run_refuses_what_resuming_would(vqvae_run, tmp_path, files, changed, named):
    assert vqvae_run()[0] == 0
    before = files(tmp_path / "run")
    code, _, error = vqvae_run("--resume", *changed, "--dry-run")
    assert code == 2
    assert named in error
    assert vqvae_run("--resume", *changed)[2].splitlines()[-1] == error.splitlines()[-1]
    assert files(tmp_path / "run") == before


def test_a_dry_run_reads_every_image(images, tmp_path, run):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    broken = sorted(folder.glob("train/cat/*.png"))[-1]
    broken.write_bytes(broken.read_bytes()[:-60])
    arguments = ["train-vqvae", "--data", folder, *MODEL, *SHORT]
    code, _, error = run(*arguments, "--dry-run")
    assert code == 2
    assert broken.name in error
    assert "skip_corrupt" in error


@pytest.mark.parametrize("place", ["", "runs/vqvae"])
@pytest.mark.parametrize(
    "command", ["train-vqvae", "train-classifier", "finetune-decoder", "extract", "reconstruct"]
)
def test_the_folder_of_the_images_is_not_written_into(command, place, images, vqvae, run, files):
    before = files(images)
    trains = command in ("train-vqvae", "train-classifier")
    model = [] if trains else ["--vqvae", vqvae]
    code, _, error = run(command, "--data", images, *model, "--out", images / place)
    assert code == 2
    assert f"--out: {images / place} lies in {images}, whose images it would add to" in error
    assert files(images) == before


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(images, tmp_path, run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # it holds root back, too
    code, _, error = run("train-vqvae", "--data", images, *MODEL, "--out", tmp_path / "a/b")
    assert code == 2
    assert f"--out: expected a folder to write to, got {tmp_path}/a/b; {tmp_path} cannot" in error


def test_a_collapsed_codebook_is_said(vqvae_run, monkeypatch):
    monkeypatch.setattr(
        "vqvae2_fast.training.stage1._held_out_metrics",
        lambda *_: {
            "psnr": 9.0,
            "top_codes_used": 1.0,
            "top_perplexity": 1.0,
            "bottom_codes_used": 9.0,
            "bottom_perplexity": 8.0,
        },
    )
    told = vqvae_run("--model.quantize-after", 0)[1]
    assert "use only 1 of the 16 codes of level top" in told
    assert "Raise restart=" in told
    assert "level bottom" not in told


def test_codebooks_that_had_no_time_to_begin_are_not_said_to_collapse(vqvae_run):
    told = vqvae_run("--model.quantize-after", 4)[1]
    assert "warning: the run of 4 steps ended before its codebooks began" in told
    assert "collapsed" not in told


def test_a_classifier_that_takes_fewer_images_at_once_keeps_the_batch(images, tmp_path, run):
    options = ["--data", images, "--image-size", 8, 8, "--steps", 2, "--out", tmp_path / "run"]
    given = [[], ["--batch-size", 3]]
    plans = [run("train-classifier", *options, *more, "--dry-run", "--json")[1] for more in given]
    sizes = [(plan["batch_size"], plan["global_batch"]) for plan in map(json.loads, plans)]
    assert sizes == [(18, 18), (3, 18)]
