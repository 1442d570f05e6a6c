"""`vqvae2-fast sample`: what it leaves, resuming, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from helpers.models import tiny_pipeline
from PIL import Image

from vqvae2_fast.checkpoints import load, save
from vqvae2_fast.checkpoints.pretrained import from_preset, pretrained_card
from vqvae2_fast.cli import main
from vqvae2_fast.commands import sample as module
from vqvae2_fast.data import to_uint8
from vqvae2_fast.data.sample_folder import SampleFolder, read_index
from vqvae2_fast.sampling import sample_images


def test_it_leaves_images_their_index_settings_and_a_picture(sample, tmp_path, files):
    assert sample(tmp_path / "out", "--n", "5") == 0
    expected = {"samples.jsonl", "settings.json", "samples.png"}
    expected |= {f"images/0000{n}.png" for n in range(5)}
    assert set(files(tmp_path / "out")) == expected
    with Image.open(tmp_path / "out" / "images" / "00000.png") as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")


def test_classes_take_turns(sample, tmp_path, column):
    assert sample(tmp_path, "--n", "7") == 0
    assert column(tmp_path, "class") == ["cat", "cow", "dog", "cat", "cow", "dog", "cat"]


def test_groups_of_classes_take_turns(tmp_path, column):
    names = ("Pet - cat", "Pet - dog", "Cow")
    save(replace(tiny_pipeline(3), class_names=names), tmp_path / "grouped")
    out = tmp_path / "out"
    assert main(["sample", "--pipeline", f"{tmp_path}/grouped", "--out", str(out), "--n", "4"]) == 0
    assert column(out, "class") == ["Pet - cat", "Cow", "Pet - dog", "Pet - cat"]


def test_labels_are_found_by_number_name_or_its_beginning(sample, tmp_path, column):
    assert sample(tmp_path, "--n", "4", "--label", "DO", "0", "none", "cow") == 0
    assert column(tmp_path, "class") == ["dog", "cat", None, "cow"]
    assert column(tmp_path, "label") == [2, 0, 3, 1]


def test_models_one_by_one_have_the_names_of_their_classes(pipelines, tmp_path, run, column):
    parts = [pipelines / "classes" / name for name in ("vqvae", "prior_top", "prior_bottom")]
    code, said, _ = run(
        *("sample --quiet --n 2 --label cow --vqvae", parts[0], "--priors", *parts[1:]),
        *("--out", tmp_path / "out"),
    )
    assert code == 0
    assert "(cow, seed 0)" in said
    assert column(tmp_path / "out", "class") == ["cow", "cow"]


def test_images_are_those_of_the_python_function(sample, tmp_path, pixels):
    options = (
        "--label dog --seed 5 --temperature 0.9 0.7 --top-k 0 4 --top-p 0.9 --guidance-scale 2"
    )
    assert sample(tmp_path, "--n 2", options) == 0
    expected = sample_images(
        tiny_pipeline(),
        2,
        labels=torch.tensor([2, 2]),
        seed=5,
        temperature=[0.9, 0.7],
        top_k=[None, 4],
        top_p=0.9,
        guidance_scale=2.0,
    )
    for number, image in enumerate(to_uint8(expected)):
        found = pixels(tmp_path / "images" / f"0000{number}.png")
        difference = found.int() - image.permute(1, 2, 0).flatten().int()
        assert difference.abs().max() <= 1  # batches round differently


def test_rows_tell_the_log_probability_of_each_level_and_the_settings(sample, tmp_path):
    assert sample(tmp_path, "--n", "2", "--temperature", "0.5", "1") == 0
    for row in read_index(tmp_path):
        assert set(row["log_prob"]) == {"top", "bottom"}
        assert all(value < 0 for value in row["log_prob"].values())
        assert row["settings"] == {
            "seed": 0,
            "temperature": [0.5, 1.0],
            "top_k": [None, None],
            "top_p": [None, None],
            "guidance_scale": [1.0, 1.0],
            "engine": row["settings"]["engine"],
        }


def test_grey_images_stay_grey(sample, tmp_path, column):
    assert sample(tmp_path, "--n", "1", pipeline="plain") == 0
    with Image.open(tmp_path / "images" / "00000.png") as image:
        assert image.mode == "L"
    assert column(tmp_path, "class") == [None]


def test_a_folder_is_the_same_in_any_batch(sample, tmp_path, files):
    assert sample(tmp_path / "a", "--n", "7", "--batch-size", "1") == 0
    assert sample(tmp_path / "b", "--n", "7", "--batch-size", "5") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_resume_draws_what_is_missing_and_more(sample, tmp_path, files):
    assert sample(tmp_path / "a", "--n", "7") == 0
    assert sample(tmp_path / "b", "--n", "5") == 0
    for number in (1, 2, 4):
        (tmp_path / "b" / "images" / f"0000{number}.png").unlink()
    kept = (tmp_path / "b" / "images" / "00003.png").stat()
    assert sample(tmp_path / "b", "--n", "7", "--resume") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert (tmp_path / "b" / "images" / "00003.png").stat().st_mtime_ns == kept.st_mtime_ns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "2"], "holds samples already. Continue there with resume,"),
        (["--n", "2", "--resume", "--seed", "1"], "(seed: 0 there, 1 now)"),
        (["--n", "2", "--resume", "--label", "cat"], "(labels: 'all' there, [0] now)"),
        (["--n", "2", "--resume", "--engine", "reference"], "'reference' now"),
        (["--n", "1", "--resume"], "begun for 2 samples, got 1"),
    ],
)
def test_a_folder_keeps_to_its_settings(sample, sample_error, tmp_path, arguments, message, files):
    assert sample(tmp_path, "--n", "2") == 0
    before = files(tmp_path)
    assert message in sample_error(tmp_path, *arguments)
    assert files(tmp_path) == before


def test_other_weights_are_other_settings(sample, sample_error, tmp_path):
    pipeline = tiny_pipeline()
    with torch.no_grad():
        next(pipeline.vqvae.parameters()).add_(0.1)
    save(pipeline, tmp_path / "changed", class_names=("cat", "cow", "dog"))
    assert sample(tmp_path / "out", "--n", "1") == 0
    options = f"--n 1 --resume --pipeline {tmp_path / 'changed'}"
    assert "weights" in sample_error(tmp_path / "out", options)


def test_without_a_folder_it_takes_the_first_that_is_free(pipelines, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(2):
        code, out, _ = run(f"sample --pipeline {pipelines / 'classes'} --n 1 --quiet --json")
        assert code == 0
        folders.append(json.loads(out)["folder"])
    assert folders == ["runs/samples/images", "runs/samples-2/images"]


def test_a_pipeline_is_drawn_from_as_it_recommends(pipelines, tmp_path, capsys, column):
    pipeline = replace(
        load(pipelines / "classes"),
        recommended={"temperature": [0.8, 0.7], "guidance_scale": [2.0, 1.5], "top_k": [None, 7]},
    )
    save(pipeline, tmp_path / "pipeline")
    arguments = ["sample", "--pipeline", str(tmp_path / "pipeline"), "--n", "1", "--quiet"]
    assert main([*arguments, "--temperature", "0.5", "--out", str(tmp_path / "out")]) == 0
    settings = column(tmp_path / "out", "settings")[0]
    assert settings["temperature"] == [0.5, 0.5]
    assert settings["guidance_scale"] == [2.0, 1.5]
    assert settings["top_k"] == [None, 7]
    assert "--guidance-scale, --top-k: as the pipeline recommends" in capsys.readouterr().out


def test_a_preset_recommends_what_its_card_says():
    assert from_preset("emoji32").recommended == pretrained_card("emoji32")["sampling"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "c"], "'c' is the beginning of cat, cow; write more"),
        (["--label", "mouse"], "class name (cat, cow, dog), got 'mouse'"),
        (["--label", "Catt"], "got 'Catt'. Perhaps you meant cat."),
        (["--label", "3"], "a label below 3"),
        (["--n", "0"], "--n: expected 1 or more, got 0"),
        (["--engine", "warp"], "engine: expected one of"),
        (["--temperature", "-1"], "expected temperature to be 0, which takes the best"),
        (["--known", "nowhere"], "known: expected an image, a folder of images, a code store"),
        (["--known", "emoji", "--label", "cat", "--keep", "0"], "keep: expected a share"),
        (["--mask", "nowhere"], "--mask: expected images to complete with it, by --known"),
        (["--known", "emoji", "--candidates", "2"], "--candidates: expected a --mask with it"),
        (["--known", "emoji", "--keep", "1", "--mask", "x"], "--keep: expected either --keep or"),
        (
            ["--known", "emoji", "--mask", "{pipelines}/classes/config.json"],
            "mask: {pipelines}/classes/config.json cannot be decoded",
        ),
        (["--known", "{pipelines}/classes/config.json"], "config.json cannot be decoded"),
        (["--known", os.devnull], "is a device, not a regular file"),
        (
            ["--pipeline", "{pipelines}/plain", "--label", "cat"],
            "--label: the priors have no classes",
        ),
        (
            ["--label", "none", "--guidance-scale", "1", "2"],
            "--guidance-scale: expected 1 for images without a class, got 2",
        ),
        (["--preset", "emoji32"], "one of --preset, --pipeline, or --vqvae"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_told_and_leaves_no_folder(
    pipelines, sample_error, tmp_path, arguments, message
):
    filled = [argument.format(pipelines=pipelines) for argument in arguments]
    error = sample_error(tmp_path / "out", *filled)
    assert message.format(pipelines=pipelines) in error
    assert not (tmp_path / "out").exists()


def test_resume_needs_a_folder(pipelines, error_of):
    message = error_of(["sample", "--pipeline", str(pipelines / "classes"), "--resume"])
    assert "--resume: name the folder" in message


@pytest.mark.parametrize("batches", [0, 1])
def test_a_full_disk_is_told_and_goes_on_when_there_is_room(
    sample, sample_error, small_disk, tmp_path, monkeypatch, batches, files
):
    out, arguments = small_disk.folder / "out", ["--n", "12", "--batch-size", "4", "--resume"]
    add, calls = SampleFolder.add, []

    def fill_and_add(*batch):
        calls.append(batch)
        if len(calls) > batches:
            small_disk.fill(0)
        add(*batch)

    monkeypatch.setattr(SampleFolder, "add", fill_and_add)
    text = sample_error(out, *arguments, code=1)
    small_disk.clear()
    monkeypatch.undo()
    assert re.search(
        r"cannot write to \S+out: (No space left|File too large).* continue with", text
    )
    images = [name for name in files(out) if name.startswith("images/")]
    assert sorted(images) == [row["file"] for row in read_index(out)]
    assert len(images) == 4 * batches
    assert sample(out, *arguments) == 0
    assert sample(tmp_path / "peace", *arguments) == 0
    assert files(out) == files(tmp_path / "peace")


def test_a_signal_stops_it_and_it_goes_on(
    sample, sample_error, tmp_path, monkeypatch, column, files
):
    add, out = SampleFolder.add, tmp_path / "out"

    def add_and_signal(*batch):
        add(*batch)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SampleFolder, "add", add_and_signal)
    arguments = ["--n", "5", "--batch-size", "2"]
    text = sample_error(out, *arguments, code=143)
    assert f"2 of 5 images are whole and in the index. Continue with --resume --out {out}" in text
    monkeypatch.undo()
    assert column(out, "sample") == [0, 1]
    assert sample(out, *arguments, "--resume") == 0
    assert sample(tmp_path / "peace", *arguments) == 0
    assert files(out) == files(tmp_path / "peace")


def test_processes_share_the_work_and_draw_the_same_folder(
    pipelines, sample, tmp_path, run_in_two_processes, files
):
    line = f"sample --pipeline {pipelines / 'classes'} --n 5 --quiet --batch-size 2"
    outputs = run_in_two_processes(line, f"--out {tmp_path / 'two'}")
    # The last one to finish prints the result.
    assert sum("5 images in" in output for output in outputs) == 1
    assert sample(tmp_path / "one", "--n", "5") == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


def refused_at_once(monkeypatch):
    """Has the drawing refuse the pipeline, as an engine does."""

    def refuse(*_, **__):
        raise ValueError("no calibration")

    monkeypatch.setattr(module, "draw_into", refuse)


def test_an_engine_that_cannot_draw_what_was_asked_for_is_a_wrong_request(sample_error, tmp_path):
    error = sample_error(tmp_path / "out", "--n 1 --device cpu --engine cuda", code=2)
    assert "engine " in error


@pytest.mark.parametrize("resume", ["", "--resume"])
def test_an_engine_that_refuses_leaves_nothing_in_the_way_of_another(
    sample, sample_error, tmp_path, resume
):
    out = tmp_path / "out"
    sample_error(out, "--n 1 --engine cpu_w8a8")  # the pipeline has no calibration
    assert not out.exists()
    assert sample(out, "--n 1", resume) == 0


def test_a_refused_run_keeps_what_was_there(sample, sample_error, tmp_path, monkeypatch, files):
    assert sample(tmp_path / "drawn", "--n 1") == 0
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / ".keep").touch()
    before = files(tmp_path)
    refused_at_once(monkeypatch)
    assert "no calibration" in sample_error(tmp_path / "drawn", "--n 2 --resume")
    assert "no calibration" in sample_error(tmp_path / "own", "--n 2")
    after = files(tmp_path)
    assert after.pop("drawn/settings.json") != before.pop("drawn/settings.json")  # the count
    assert after == before


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
