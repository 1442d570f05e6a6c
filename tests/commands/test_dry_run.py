"""`--dry-run`: everything is checked, the plan is printed, and nothing is changed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from helpers.models import SMALL_VQVAE

from vqvae2_fast.models.vqvae2 import VQVAE2

MODEL = (
    "--model.image-size 8 8 --model.strides 2 2 --model.hidden-channels 8 "
    "--model.residual-channels 4 --model.num-embeddings 16 --model.embedding-dim 4"
)
PRIOR = "--model.channels 8 --model.residual-channels 8 --model.num-heads 2"


def test_train_vqvae_tells_its_plan_and_touches_nothing(images, tmp_path, run, monkeypatch, files):
    monkeypatch.chdir(tmp_path)
    line = f"train-vqvae --data {images} {MODEL} --train.steps 7 --train.batch-size 4 --dry-run"
    line += f" --cache {tmp_path}/cache"
    code, text, _ = run(line)
    assert code == 0
    for part in (
        "7 steps of 4",
        "train 18, held_out 6",
        "[3, 8, 8]",
        "level sizes 2x2, 4x4",
        "out: runs/vqvae",
        "nothing was written",
    ):
        assert part in text
    values = json.loads(run(line, "--json")[1])
    config = replace(SMALL_VQVAE, num_residual_blocks=2, num_embeddings=16)
    count = sum(weight.numel() for weight in VQVAE2(config).parameters())
    assert values["parameters"] == count
    assert values["model_bytes"] > 4 * count
    assert values["training_bytes"] - values["model_bytes"] == 2 * 4 * count  # gradients, momentum
    assert not list(tmp_path.iterdir())


def test_extract_tells_its_records(images, vqvae, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["extract", "--vqvae", vqvae, "--data", images, "--flip", "--copies", 1]
    values = json.loads(run(*arguments, "--dry-run", "--json")[1])
    assert values["images"] == {"train": 18, "held_out": 6}
    assert values["records"] == values["missing"] == {"train": 54, "held_out": 6}
    assert values["store_bytes"] == 60 * (2 + 8 + 4)  # 4 and 16 codes of 4 bits, and the label
    assert not list(tmp_path.iterdir())


def test_extract_with_resume_tells_what_is_left(images, vqvae, codes, run, files):
    before = files(codes)
    arguments = ["extract", "--vqvae", vqvae, "--data", images, "--out", codes, "--resume"]
    values = json.loads(run(*arguments, "--dry-run", "--json")[1])
    assert values["missing"] == {"train": 0, "held_out": 0}
    assert files(codes) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train-vqvae --data {images}", "smaller than image_size 32x32"),
        (
            f"train-vqvae --data {{images}} {MODEL} --train.batch-size 19",
            "error: expected batch_size to be an integer from 1 to 18, got 19",
        ),
        ("extract --vqvae {vqvae} --data nowhere", "data: expected the folder"),
        (
            f"train-prior --codes {{codes}} --train.batch-size 19 {PRIOR}",
            "error: expected batch_size to be an integer from 1 to 18, got 19",
        ),
    ],
    ids=["size", "batch", "model", "codes"],
)
def test_what_would_fail_fails(line, message, images, vqvae, codes, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(line.format(images=images, vqvae=vqvae, codes=codes), "--dry-run")
    assert code == 2
    assert message in error
    assert not list(tmp_path.iterdir())
