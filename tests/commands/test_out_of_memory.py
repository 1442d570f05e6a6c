"""A training that runs out of memory: the message names the settings that help."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.models import SMALL_VQVAE

from vqvae2_fast.commands.memory import explaining_memory
from vqvae2_fast.commands.train_vqvae import TrainVQVAE
from vqvae2_fast.console.words import number
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.training import TrainConfig
from vqvae2_fast.training.stage1 import freeze_all_but_decoder


def fill_the_machine(*_: object, **__: object) -> None:
    torch.empty(2**55)


def fill_the_card(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fill", [fill_the_machine, fill_the_card])
def test_a_command_names_the_settings_that_help(images, tmp_path, run, monkeypatch, fill):
    monkeypatch.setattr("vqvae2_fast.commands.training.train", fill)
    options = ["--data", images, "--out", tmp_path / "run", "--quiet", "--train.batch-size", "6"]
    sizes = ["--model.image-size", "8", "8", "--model.strides", "2", "2"]
    more = ["--train.accumulate", "2", "--train.precision", "float32"]
    code, _, error = run("train-vqvae", *options, *sizes, *more)
    assert code == 1
    assert "out of memory with micro-batches of 6" in error
    assert "batch_size=3 and accumulate=4: the same images" in error
    assert "precision=bfloat16" in error
    assert "--resume" in error


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 9}, ["batch_size=3 and accumulate=3", "bfloat16", "optimizer=momentum"]),
        ({"batch_size": 4, "global_batch": 8}, ["batch_size=2: the same images"]),
        ({"batch_size": 1, "average_decay": 0.9}, ["bfloat16", "average_decay=0: 0.01817 MiB"]),
        ({"precision": "bfloat16", "average_decay": 0.9}, ["batch_size=16", "average", "momentum"]),
    ],
    ids=str,
)
def test_settings_that_are_used_already_are_left_out(settings, expected):
    config = TrainConfig(**settings)
    explaining = explaining_memory(VQVAE2(SMALL_VQVAE), config, TrainVQVAE)
    with pytest.raises(RuntimeError, match="out of memory") as caught, explaining:
        fill_the_card()
    helps = str(caught.value).partition("What helps: ")[2].split("; ")
    assert len(helps) <= 3
    for words in expected:
        assert any(words in one for one in helps), helps
    assert ("bfloat16" in str(caught.value)) == (config.precision == "float32")


def test_the_moments_are_those_of_the_weights_that_are_trained():
    model = VQVAE2(SMALL_VQVAE)
    freeze_all_but_decoder(model)
    size = sum(weight.nbytes for weight in model.decoder.parameters()) / 2**20
    explaining = explaining_memory(model, TrainConfig(batch_size=1), TrainVQVAE)
    saved = f"optimizer=momentum, in a new run: {number(size)} MiB, the size of the weights that"
    with pytest.raises(RuntimeError, match=re.escape(saved)), explaining:
        fill_the_card()
