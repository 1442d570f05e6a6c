"""Words beside classes, from codes to samples."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from helpers.models import tiny_pipeline

from vqvae2_fast.checkpoints import load, save
from vqvae2_fast.data import CodeStore, to_uint8
from vqvae2_fast.data.pixels import decode_image
from vqvae2_fast.data.sample_folder import read_index
from vqvae2_fast.data.words import keep_words
from vqvae2_fast.sampling import sample_images, with_words

WORDS = ("beard=full", "glasses=any", "glasses=none")
PRIOR = "--model.channels 8 --model.residual-channels 8 --model.num-heads 2 --train.batch-size 4"


@pytest.fixture
def pipeline(tmp_path):
    path = tmp_path / "pipeline"
    save(replace(tiny_pipeline(2, words=WORDS), class_names=("lorelei", "gaze")), path)
    return path


def test_a_prior_is_told_the_words_of_its_codes(codes, tmp_path, run):
    codes = shutil.copytree(codes, tmp_path / "codes")
    for split in ("train", "held_out"):
        store = CodeStore(codes / split)
        keep_words(codes / split, (WORDS, torch.zeros(len(store), 1, dtype=torch.int64)))
    out = tmp_path / "prior"
    assert run(f"train-prior --codes {codes} {PRIOR} --train.steps 1 --quiet --out {out}")[0] == 0
    prior = load(out)
    assert (prior.config.num_words, prior.word_names) == (3, WORDS)


def test_images_are_drawn_with_the_words(pipeline, tmp_path, run):
    out = tmp_path / "out"
    line = f"sample --quiet --pipeline {pipeline} --n 2 --label lorelei --out {out}"
    assert run(line, "--with", "glasses=any", "beard=full")[0] == 0
    loaded = load(pipeline)
    labels = with_words(loaded, ["lorelei"] * 2, ["glasses=any", "beard=full"])
    expected = to_uint8(sample_images(loaded, 2, labels=labels))
    for number, image in enumerate(expected):
        path = out / "images" / f"0000{number}.png"
        with path.open("rb") as file:
            assert torch.equal(decode_image(file, path.name, (3, 16, 16), False), image)


def test_the_index_names_the_words(pipeline, tmp_path, run):
    out = tmp_path / "out"
    line = f"sample --quiet --pipeline {pipeline} --n 1 --label gaze --with glasses=any --out {out}"
    code, said, _ = run(line)
    assert code == 0
    assert "(gaze, with glasses=any, seed 0)" in said
    assert [row["words"] for row in read_index(out)] == [["glasses=any"]]


def test_samples_of_other_words_are_another_series(pipeline, tmp_path, run):
    line = f"sample --quiet --pipeline {pipeline} --label gaze --out {tmp_path / 'out'}"
    assert run(line, "--n 1 --with glasses=any")[0] == 0
    assert run(line, "--n 2 --resume --with glasses=none")[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("glases=any", "--with: expected .* got glases=any. Perhaps you meant glasses"),
        ("glasses=any glasses=none", "--with: expected one value of glasses"),
        ("beard=full --label none", "--with: expected a class with the words beard=full"),
    ],
)
def test_words_that_cannot_be_drawn_are_refused(pipeline, tmp_path, run, words, message):
    code, _, error = run(f"sample --pipeline {pipeline} --out {tmp_path / 'out'} --with {words}")
    assert code == 2
    assert message.partition(" .* ")[0] in error
    assert message.rpartition(" .* ")[2] in error


def test_info_lists_the_words(pipeline, run):
    assert "word names: beard=full, glasses=any, glasses=none" in run(f"info {pipeline}")[1]
