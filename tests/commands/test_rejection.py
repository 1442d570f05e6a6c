"""`vqvae2-fast sample --classifier`: what is kept, resuming, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.models import tiny_pipeline

from vqvae2_fast.checkpoints import save
from vqvae2_fast.cli import main
from vqvae2_fast.data.sample_folder import read_index
from vqvae2_fast.models.classifier import Classifier, ClassifierConfig

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("cat", "cow", "dog")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rejection")
    save(tiny_pipeline(), root / "pipeline", class_names=CLASSES)
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig((16, 16), 3, 3, "small", 8)).eval()
    save(model, root / "judge", class_names=CLASSES)
    save(model, root / "other", class_names=("cat", "cow", "pig"))
    small = Classifier(ClassifierConfig((8, 8), 3, 3, "small", 8)).eval()
    save(small, root / "small", class_names=CLASSES)
    return root


def sample(place: Path, out: Path, *arguments: str, judge: str = "judge") -> int:
    line = f"sample --pipeline {place}/pipeline --classifier {place / judge} --out {out} --quiet"
    return main([*line.split(), *arguments])


def rows(out: Path) -> list[dict]:
    return list(read_index(out))


def test_the_best_of_each_group_of_one_class_are_written(place, tmp_path):
    assert sample(place, tmp_path, "--best", "1", "4", "--n", "24") == 0
    found = rows(tmp_path)
    assert [row["label"] for row in found] == [n // 4 % 3 for n in range(24)]
    for first in range(0, 24, 4):
        group = found[first : first + 4]
        kept = [row for row in group if row["file"]]
        assert len(kept) == 1
        assert kept[0]["class_probability"] == max(row["class_probability"] for row in group)
    assert len(list((tmp_path / "images").glob("*.png"))) == 6
    assert (tmp_path / "samples.png").exists()


def test_a_threshold_writes_what_reaches_it(place, tmp_path, capsys):
    assert sample(place, tmp_path / "all", "--threshold", "0", "--n", "12") == 0
    scores = sorted(row["class_probability"] for row in rows(tmp_path / "all"))
    middle = (scores[5] + scores[6]) / 2
    capsys.readouterr()
    arguments = ("--threshold", str(middle), "--n", "12", "--json")
    assert sample(place, tmp_path / "half", *arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["drawn"]) == (6, 12)
    assert all(
        (row["file"] is not None) == (row["class_probability"] >= middle)
        for row in rows(tmp_path / "half")
    )


def test_whole_groups_go_on_and_end_as_an_unbroken_run(place, tmp_path):
    arguments = ("--best", "1", "3", "--n", "18", "--batch-size", "5")
    assert sample(place, tmp_path / "whole", *arguments) == 0
    assert sample(place, tmp_path / "cut", *arguments) == 0
    index = tmp_path / "cut" / "samples.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:7]))  # within the third group
    for path in (tmp_path / "cut" / "images").glob("0000[3-9].png"):
        path.unlink()
    assert sample(place, tmp_path / "cut", *arguments, "--resume") == 0
    assert index.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    names = [
        sorted(p.name for p in (tmp_path / part / "images").glob("*.png"))
        for part in ("cut", "whole")
    ]
    assert names[0] == names[1]


def test_two_processes_keep_what_one_keeps(place, tmp_path, run_in_two_processes):
    arguments = ("--best", "1", "3", "--n", "18", "--batch-size", "4")
    line = f"sample --pipeline {place}/pipeline --classifier {place}/judge --quiet"
    run_in_two_processes(line, *arguments, f"--out {tmp_path}/two")
    assert sample(place, tmp_path / "one", *arguments) == 0
    two, one = (tmp_path / name for name in ("two", "one"))
    assert rows(two) == rows(one)
    pictures = [
        {p.name: p.read_bytes() for p in (out / "images").glob("*.png")} for out in (two, one)
    ]
    assert len(pictures[1]) == 6
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("arguments", "judge", "text"),
    [
        (("--best", "1", "4", "--n", "6"), "judge", "a multiple of the 4 candidates"),
        ((), "judge", "expected either --best M N or --threshold P"),
        (("--best", "1", "2", "--threshold", "0.5"), "judge", "expected either --best M N"),
        (("--best", "1", "2"), "other", "trained on 3 classes (cat, cow, pig)"),
        (("--best", "1", "2"), "small", "--image-size 16 16"),
        (("--best", "1", "2"), "pipeline", "found a pipeline"),
        (("--best", "1", "2", "--label", "none"), "judge", "expected samples of classes"),
        (("--best", "3", "2"), "judge", "1 <= M <= N, got best=3 of every 2."),
    ],
)
def test_requests_that_make_no_sense_are_refused(place, tmp_path, capsys, arguments, judge, text):
    assert sample(place, tmp_path / "out", *arguments, judge=judge) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_rule_without_a_classifier_is_refused(place, capsys):
    assert main(["sample", "--pipeline", str(place / "pipeline"), "--threshold", "0.5"]) == 2
    assert "for --best or --threshold to judge by" in capsys.readouterr().err


def test_train_classifier_leaves_one_that_judges(tmp_path, images, run):
    line = f"train-classifier --data {images} --image-size 8 8 --steps 2 --quiet"
    line += f" --out {tmp_path}/run"
    assert run(line)[0] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["network"] == "small"
    assert result["classes"] == ["cat", "dog"]
    assert 0 <= result["held_out"]["accuracy"] <= 1
    code, _, error = run(line)
    assert code == 2
    assert "holds a run already" in error
