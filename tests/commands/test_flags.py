"""Arguments that the library names become the flags of the command that ran."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import vqvae2_fast
from vqvae2_fast.commands.evaluate import Evaluate
from vqvae2_fast.commands.extract import Extract
from vqvae2_fast.commands.flags import as_flags, flags_of, value_of
from vqvae2_fast.commands.sample import Sample
from vqvae2_fast.commands.train_classifier import TrainClassifier
from vqvae2_fast.commands.train_prior import TrainPrior
from vqvae2_fast.commands.train_vqvae import TrainVQVAE


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("batches: batch_size must be 1, got 2.", "--train.batch-size must be 1, got 2."),
        ("steps must be >= 1.", "--train.steps must be >= 1."),
        ("train: out: x holds a run. Pass resume=True.", "--out: x holds a run. Pass --resume."),
        ("size of data_set", "size of data_set"),
        ("/a/batch_size/b is no model", "/a/batch_size/b is no model"),
        ("made with flip=True, got False", "made with --flip=True, got False"),
        ("made with batch_size=4", "made with --train.batch-size=4"),
        ("the data and the model of all steps", "the data and the model of all steps"),
        ("Use compile=False, or not.", "Use --train.no-compile, or not."),
        ("made with flip=False, got True", "made with --flip=False, got True"),
        ("x: adversary.weight must be >= 0.", "--adversary.weight must be >= 0."),
        ("lower class_head.learning_rate", "lower --class-head.learning-rate"),
        ("made with perceptual_weight=1.0", "made with --lpips-weight=1.0"),
        ("head={'learning_rate': 1, 'flip=True': 2}", "head={'learning_rate': 1, 'flip=True': 2}"),
        ("{'a': 1}: raise batch_size", "{'a': 1}: raise --train.batch-size"),
        ("x: expected steps to be an integer", "expected --train.steps to be an integer"),
        ("Make room and continue by the same call", "Make room and continue with --resume"),
    ],
)
def test_a_message_names_flags(message, told):
    assert as_flags(message, TrainVQVAE) == told


def test_messages_of_the_library_name_no_flags():
    """Outside of whole commands, in backticks: a caller of Python has arguments only."""
    package = Path(vqvae2_fast.__file__).parent
    found = [
        f"{path.relative_to(package)}:{node.lineno}: {node.value}"
        for path in package.rglob("*.py")
        if path.parent.name != "commands" and path.name != "cli.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.search(r"(^|[\s(])--[a-z]", re.sub(r"`[^`]*(`|$)", "", node.value))
    ]
    assert not found


def test_the_last_of_an_option_that_is_given_twice_counts():
    arguments = ["--level", "top", "--level=middle", "--level", "bottom", "--out", "x"]
    assert value_of("--level", arguments, "top") == "bottom"
    assert value_of("--preset", arguments, "emoji32") == "emoji32"


def test_an_option_may_have_another_name_than_its_argument():
    told = as_flags("variants: expected codes with classes.", TrainPrior)
    assert told == "--tell-variants: expected codes with classes."
    assert as_flags("count: begun for 2, got 1.", Sample) == "--n: begun for 2, got 1."


def test_a_command_without_the_argument_leaves_its_name():
    assert as_flags("batches: batch_size must be 1.", Extract) == "batches: batch_size must be 1."


def test_a_command_that_cannot_resume_is_to_be_repeated():
    message = "stopped. Continue with resume=True and the same options."
    told = "stopped. Continue with the same command and the same options."
    assert as_flags(message, Evaluate) == told
    assert as_flags("continue by the same call", Evaluate) == "continue with the same command"


def test_of_two_fields_of_one_name_that_of_the_training_counts():
    assert flags_of(TrainVQVAE)["seed"] == flags_of(TrainPrior)["seed"] == "--train.seed"
    assert flags_of(TrainClassifier)["seed"] == "--seed"
    assert flags_of(TrainVQVAE)["flip"] == "--flip"
