"""`vqvae2-fast sample`: what it leaves, resuming, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from vqvae2_fast.checkpoints import load, save
from vqvae2_fast.checkpoints.pretrained import from_preset, pretrained_card
from vqvae2_fast.cli import main
from vqvae2_fast.data import to_float, to_uint8, write_codes
from vqvae2_fast.data.pixels import decode_image
from vqvae2_fast.data.sample_folder import SampleFolder, read_index
from vqvae2_fast.sampling import fill, sample_images
from vqvae2_fast.sampling.known import painted
from vqvae2_fast.testing.pipelines import tiny_pipeline

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("cat", "cow", "dog")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    save(tiny_pipeline(), root / "classes", class_names=CLASSES)
    save(tiny_pipeline(0, image_channels=1), root / "plain")
    return root


def sample(place: Path, out: Path, *arguments: str, pipeline: str = "classes") -> int:
    return main(
        ["sample", "--pipeline", str(place / pipeline), "--out", str(out), "--quiet", *arguments]
    )


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def column(out: Path, name: str) -> list[Any]:
    return [row[name] for row in read_index(out)]


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.tensor(list(image.tobytes()), dtype=torch.uint8)


def error_of(capsys, code: int, expected: int = 2) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert code == expected
    return text


def test_it_leaves_images_their_index_settings_and_a_picture(place, tmp_path):
    assert sample(place, tmp_path / "out", "--n", "5") == 0
    expected = {"samples.jsonl", "settings.json", "samples.png"}
    expected |= {f"images/0000{n}.png" for n in range(5)}
    assert set(files(tmp_path / "out")) == expected
    with Image.open(tmp_path / "out" / "images" / "00000.png") as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")


def test_classes_take_turns(place, tmp_path):
    assert sample(place, tmp_path, "--n", "7") == 0
    assert column(tmp_path, "class") == ["cat", "cow", "dog", "cat", "cow", "dog", "cat"]


def test_labels_are_found_by_number_name_or_its_beginning(place, tmp_path):
    assert sample(place, tmp_path, "--n", "4", "--label", "DO", "0", "none", "cow") == 0
    assert column(tmp_path, "class") == ["dog", "cat", None, "cow"]
    assert column(tmp_path, "label") == [2, 0, 3, 1]


def test_images_are_those_of_the_python_function(place, tmp_path):
    arguments = [
        "--n",
        "2",
        "--label",
        "dog",
        "--seed",
        "5",
        "--temperature",
        "0.9",
        "0.7",
        "--top-k",
        "0",
        "4",
        "--top-p",
        "0.9",
        "--guidance-scale",
        "2",
    ]
    assert sample(place, tmp_path, *arguments) == 0
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


def test_rows_tell_the_log_probability_of_each_level_and_the_settings(place, tmp_path):
    assert sample(place, tmp_path, "--n", "2", "--temperature", "0.5", "1") == 0
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


def test_grey_images_stay_grey(place, tmp_path):
    assert sample(place, tmp_path, "--n", "1", pipeline="plain") == 0
    with Image.open(tmp_path / "images" / "00000.png") as image:
        assert image.mode == "L"
    assert column(tmp_path, "class") == [None]


def test_a_folder_is_the_same_in_any_batch(place, tmp_path):
    assert sample(place, tmp_path / "a", "--n", "7", "--batch-size", "1") == 0
    assert sample(place, tmp_path / "b", "--n", "7", "--batch-size", "5") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_resume_draws_what_is_missing_and_more(place, tmp_path):
    assert sample(place, tmp_path / "a", "--n", "7") == 0
    assert sample(place, tmp_path / "b", "--n", "5") == 0
    for number in (1, 2, 4):
        (tmp_path / "b" / "images" / f"0000{number}.png").unlink()
    kept = (tmp_path / "b" / "images" / "00003.png").stat()
    assert sample(place, tmp_path / "b", "--n", "7", "--resume") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert (tmp_path / "b" / "images" / "00003.png").stat().st_mtime_ns == kept.st_mtime_ns


def test_resume_of_nothing_begins(place, tmp_path):
    assert sample(place, tmp_path / "out", "--n", "1", "--resume") == 0
    assert column(tmp_path / "out", "sample") == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "2"], "holds samples already. Add --resume"),
        (["--n", "2", "--resume", "--seed", "1"], "(seed: 0 there, 1 now)"),
        (["--n", "2", "--resume", "--label", "cat"], "(labels: 'all' there, [0] now)"),
        (["--n", "2", "--resume", "--engine", "reference"], "'reference' now"),
        (["--n", "1", "--resume"], "begun for 2 samples, got 1"),
    ],
)
def test_a_folder_keeps_to_its_settings(place, tmp_path, capsys, arguments, message):
    assert sample(place, tmp_path, "--n", "2") == 0
    before = files(tmp_path)
    assert message in error_of(capsys, sample(place, tmp_path, *arguments))
    assert files(tmp_path) == before


def test_other_weights_are_other_settings(place, tmp_path, capsys):
    pipeline = tiny_pipeline()
    with torch.no_grad():
        next(pipeline.vqvae.parameters()).add_(0.1)
    save(pipeline, tmp_path / "changed", class_names=CLASSES)
    assert sample(place, tmp_path / "out", "--n", "1") == 0
    code = sample(tmp_path, tmp_path / "out", "--n", "1", "--resume", pipeline="changed")
    assert "weights" in error_of(capsys, code)


def test_without_a_folder_it_takes_the_first_that_is_free(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["sample", "--pipeline", str(place / "classes"), "--n", "1", "--quiet", "--json"]
    folders = []
    for _ in range(2):
        assert main(arguments) == 0
        folders.append(json.loads(capsys.readouterr().out)["folder"])
    assert folders == ["runs/samples/images", "runs/samples-2/images"]


def test_a_pipeline_is_drawn_from_as_it_recommends(place, tmp_path, capsys):
    pipeline = replace(
        load(place / "classes"),
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


def test_completion_keeps_the_upper_rows(place, tmp_path):
    assert sample(place, tmp_path / "whole", "--n", "1", "--label", "cat") == 0
    image = str(tmp_path / "whole" / "images" / "00000.png")
    arguments = ["--known", image, "--label", "cat", "--n", "3"]
    assert sample(place, tmp_path / "all", *arguments, "--keep", "1") == 0
    assert sample(place, tmp_path / "half", *arguments, "--keep", "0.5", "--seed", "1") == 0
    copies = [pixels(tmp_path / "all" / "images" / f"0000{n}.png") for n in range(3)]
    assert torch.equal(copies[0], copies[1])
    half = [pixels(tmp_path / "half" / "images" / f"0000{n}.png") for n in range(3)]
    assert not torch.equal(half[0], half[1])
    # Far above the part that was drawn, all depend on the same codes.
    rows = 16 * 3 * 2
    assert torch.equal(half[0][:rows], copies[0][:rows])
    assert column(tmp_path / "half", "known") == [0, 0, 0]


def test_known_images_take_turns_and_their_classes_with_them(place, tmp_path):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randint(13, (2, size, size), generator=generator) for size in (4, 8)]
    labels = torch.tensor([2, -1])
    encode = lambda *_: [(maps, labels)]  # noqa: E731
    write_codes(tmp_path / "codes", encode, 2, 13, [(4, 4), (8, 8)], class_names=CLASSES)
    out = tmp_path / "out"
    assert sample(place, out, "--known", str(tmp_path / "codes"), "--n", "3", "--keep", "0.25") == 0
    assert column(out, "known") == [0, 1, 0]
    assert column(out, "class") == ["dog", None, "dog"]
    with Image.open(out / "samples.png") as picture:
        assert picture.width > picture.height  # a row: the image, two completions


def test_each_known_image_is_completed_in_every_class(place, tmp_path):
    for number in range(2):
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), (9 * number, 60, 200)).save(folder / f"{number}.png")
    arguments = ["--known", str(tmp_path / "photos"), "--label", "cat", "dog", "--n", "4"]
    assert sample(place, tmp_path / "out", *arguments) == 0
    assert column(tmp_path / "out", "known") == [0, 1, 0, 1]
    assert column(tmp_path / "out", "class") == ["cat", "cat", "dog", "dog"]


def test_a_painted_hole_is_filled_as_the_library_does(place, tmp_path):
    photo = Image.new("RGB", (40, 32), (20, 60, 200))
    photo.paste((250, 90, 10), (14, 6, 26, 20))
    photo.save(tmp_path / "photo.png")
    mask = Image.new("L", (40, 32))
    mask.putpixel((4 + 2 * 9, 2 * 5), 255)  # of the 16x16 pixels, the one in column 9, row 5
    mask.save(tmp_path / "mask.png")
    known = ["--known", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
    arguments = [*known, "--candidates", "5", "--label", "cow", "--n", "2", "--seed", "3"]
    assert sample(place, tmp_path / "out", *arguments) == 0
    pipeline = load(place / "classes")
    with open(tmp_path / "photo.png", "rb") as file:
        image = to_float(decode_image(file, "", (3, 16, 16), convert_channels=False))
    pixels_drawn = torch.zeros(16, 16, dtype=torch.bool)
    pixels_drawn[5, 9] = True
    images, effective = fill(
        pipeline, image.repeat(2, 1, 1, 1), pixels_drawn, candidates=5, labels=["cow"] * 2, seed=3
    )
    for n in range(2):
        shown = images[n].permute(1, 2, 0)  # [H, W, C]
        found = pixels(tmp_path / "out" / "images" / f"0000{n}.png")
        assert torch.equal(found, to_uint8(shown).flatten())
    told = [list(levels.values()) for levels in column(tmp_path / "out", "effective_candidates")]
    torch.testing.assert_close(torch.tensor(told), effective.float(), atol=0.006, rtol=0)


def test_a_hole_is_part_of_what_a_resumed_run_keeps_to(place, tmp_path, capsys):
    Image.new("RGB", (16, 16), (20, 60, 200)).save(tmp_path / "photo.png")
    for name, value in (("all", 255), ("half", 0)):
        mask = Image.new("L", (16, 16), 255)
        mask.paste(value, (0, 0, 16, 8))
        mask.save(tmp_path / f"{name}.png")

    def draw(name, *arguments):
        known = ["--known", str(tmp_path / "photo.png"), "--mask", str(tmp_path / f"{name}.png")]
        return sample(place, tmp_path / "out", *known, "--label", "cat", *arguments)

    assert draw("half", "--n", "1") == 0
    assert "settings" in error_of(capsys, draw("all", "--n", "2", "--resume"))
    other = draw("half", "--n", "2", "--resume", "--candidates", "2")
    assert "settings" in error_of(capsys, other)
    assert draw("half", "--n", "2", "--resume") == 0


def test_transparent_pixels_of_a_mask_are_drawn(place, tmp_path):
    Image.new("RGBA", (16, 16), (0, 0, 0, 255)).save(tmp_path / "none.png")
    config = load(place / "classes").vqvae.config
    with pytest.raises(ValueError, match="none.png: expected white or transparent pixels"):
        painted(tmp_path / "none.png", 1, config)
    mask = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    mask.putpixel((3, 7), (0, 0, 0, 0))
    mask.save(tmp_path / "mask.png")
    hole = painted(tmp_path / "mask.png", 1, config)
    assert hole.pixels.nonzero().tolist() == [[7, 3]]
    assert [level.nonzero().tolist() for level in hole.codes] == [[[1, 0]], [[3, 1]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "c"], "'c' is the beginning of cat, cow; write more"),
        (["--label", "mouse"], "class name (cat, cow, dog), got 'mouse'"),
        (["--label", "3"], "a number below 3"),
        (["--n", "0"], "--n: expected 1 or more, got 0"),
        (["--batch-size", "-1"], "--batch-size: expected 1 or more, got -1"),
        (["--engine", "warp"], "expected engine one of"),
        (["--temperature", "1", "1", "1"], "--temperature: expected one value, or 2, one per"),
        (["--temperature", "-1"], "expected temperature to be 0, which takes the best"),
        (["--top-p", "0"], "expected --top-p to be None or from"),
        (["--top-k", "-2"], "expected --top-k to be an integer from 1"),
        (["--known", "nowhere"], "--known: expected an image, a folder of images, a code store"),
        (["--known", "emoji"], "the classes of the known images are not those"),
        (["--known", "emoji", "--label", "cat", "--keep", "0"], "--keep: expected a share"),
        (["--mask", "nowhere"], "--mask: expected images to complete with it, by --known"),
        (["--known", "emoji", "--candidates", "2"], "--candidates: expected a --mask with it"),
        (["--known", "emoji", "--keep", "1", "--mask", "x"], "--keep: expected either --keep or"),
        (["--known", "emoji", "--mask", "x", "--candidates", "0"], "--candidates: expected 1 or"),
        (["--known", "emoji", "--mask", "nowhere"], "nowhere: No such file or directory"),
        (
            ["--known", "emoji", "--mask", "{place}/classes/config.json"],
            "--mask: {place}/classes/config.json cannot be decoded",
        ),
        (["--known", "{place}/classes/config.json"], "config.json cannot be decoded"),
        (["--pipeline", "{place}/plain", "--label", "cat"], "--label: the priors have no classes"),
        (["--pipeline", "{place}/plain", "--guidance-scale", "2"], "--guidance-scale: the priors"),
        (["--preset", "emoji32"], "one of --preset, --pipeline, or --vqvae"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_told_and_leaves_no_folder(place, tmp_path, capsys, arguments, message):
    filled = [argument.format(place=place) for argument in arguments]
    error = error_of(capsys, sample(place, tmp_path / "out", *filled))
    assert message.format(place=place) in error
    assert not (tmp_path / "out").exists()


def test_resume_needs_a_folder(place, capsys):
    code = main(["sample", "--pipeline", str(place / "classes"), "--resume"])
    assert "--resume: name the folder" in error_of(capsys, code)


@pytest.mark.parametrize("batches", [0, 1])
def test_a_full_disk_is_told_and_goes_on_when_there_is_room(
    place, small_disk, tmp_path, capsys, monkeypatch, batches
):
    out, arguments = small_disk.folder / "out", ["--n", "12", "--batch-size", "4", "--resume"]
    add, calls = SampleFolder.add, []

    def fill_and_add(*batch):
        calls.append(batch)
        if len(calls) > batches:
            small_disk.fill(0)
        add(*batch)

    monkeypatch.setattr(SampleFolder, "add", fill_and_add)
    text = error_of(capsys, sample(place, out, *arguments), expected=1)
    small_disk.clear()
    monkeypatch.undo()
    assert re.search(
        r"cannot write to \S+out: (No space left|File too large).* continue with", text
    )
    images = [name for name in files(out) if name.startswith("images/")]
    assert sorted(images) == [row["file"] for row in read_index(out)]
    assert len(images) == 4 * batches
    assert sample(place, out, *arguments) == 0
    assert sample(place, tmp_path / "peace", *arguments) == 0
    assert files(out) == files(tmp_path / "peace")


def test_a_signal_stops_it_and_it_goes_on(place, tmp_path, capsys, monkeypatch):
    add, out = SampleFolder.add, tmp_path / "out"

    def add_and_signal(*batch):
        add(*batch)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SampleFolder, "add", add_and_signal)
    arguments = ["--n", "5", "--batch-size", "2"]
    text = error_of(capsys, sample(place, out, *arguments), expected=143)
    assert f"2 of 5 images are whole and in the index. Continue with --resume --out {out}" in text
    monkeypatch.undo()
    assert column(out, "sample") == [0, 1]
    assert sample(place, out, *arguments, "--resume") == 0
    assert sample(place, tmp_path / "peace", *arguments) == 0
    assert files(out) == files(tmp_path / "peace")


def test_progress_tells_images_and_codes_a_second(place, tmp_path, capsys):
    arguments = ["--pipeline", str(place / "classes"), "--n", "3", "--out", str(tmp_path)]
    assert main(["sample", *arguments]) == 0
    text = capsys.readouterr().err
    assert re.search(r"sample  240/240  took 0:0\d  3/3 images  [\d,]+ codes/s  ", text)


def test_processes_share_the_work_and_draw_the_same_folder(place, tmp_path, run_in_two_processes):
    arguments = ["--pipeline", str(place / "classes"), "--n", "5", "--quiet", "--batch-size", "2"]
    outputs = run_in_two_processes("sample", *arguments, "--out", str(tmp_path / "two"))
    # The last one to finish prints the result.
    assert sum("5 images in" in output for output in outputs) == 1
    assert sample(place, tmp_path / "one", "--n", "5") == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
