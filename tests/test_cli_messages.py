"""What the command line says: help, shell completion, errors, warnings, and its exit codes."""

from __future__ import annotations

import dataclasses
import re
import warnings

import pytest

import vqvae2_fast
from vqvae2_fast.cli import COMMANDS, _parse, main
from vqvae2_fast.commands.info import Info
from vqvae2_fast.commands.options import options_of
from vqvae2_fast.commands.train_vqvae import TrainVQVAE
from vqvae2_fast.sampling.request import EngineError


def test_debug_shows_the_traceback(capsys):
    assert main(["info", "/nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


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


def test_the_command_most_like_an_unknown_one_is_named(error_of):
    assert "got 'trian-vqvae'. Perhaps you meant train-vqvae." in error_of(["trian-vqvae"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.strides", "3"], "error: expected strides to be 1 to 4 powers of two"),
        (["--adversary.weight=-1"], "adversary.weight to be a finite number >= 0, got -1"),
        (["--class-head.learning-rate=0"], "class_head.learning_rate to be a finite number > 0"),
    ],
    ids=["of the model", "of a group", "of two words"],
)
def test_an_error_of_a_configuration_is_told_like_others(arguments, message, error_of):
    assert message in error_of(["train-vqvae", *arguments])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train-vqvae --train.learning-rate abc", ("--train.learning-rate", "'abc'")),
        ("train-vqvae --train.steps 1e3", ("--train.steps", "'1e3'")),
        ("sample --top_p 90%", ("--top-p", "'90%'")),
        ("train-vqvae --train.precision x", ("--train.precision", "'x'")),
        ("train-vqvae --train.steps", ("--train.steps",)),
    ],
)
def test_a_value_that_is_not_taken_is_told_with_its_option(line, told, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert all(words in error for words in told)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--device=meta", "--device: expected cpu, cuda or auto, got 'meta'."),
        ("--threads=99999999999999999999", "--threads: expected 0 to 4096, got 9999"),
    ],
)
def test_devices_and_threads_that_are_not_taken_are_refused(option, told, error_of):
    assert f"error: {told}" in error_of(["info", option])


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, error_of):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "--device: expected a number below 2" in error_of(["info", "--device", "cuda:2"])


@pytest.mark.parametrize(
    "line",
    ["compress x", "decompress x", "export encode", "calibrate --codes x --pipeline x"],
)
def test_a_gpu_for_what_only_the_cpu_runs_is_refused(line, monkeypatch, error_of):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert "runs on the CPU only, got cuda" in error_of([*line.split(), "--device", "cuda"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("info --colour", "expected an option of info, got --colour."),
        ("train-vqvae --train.stesp=3", "got --train.stesp. Perhaps you meant --train.steps."),
        ("train-vqvae --steps 3", "got --steps. Perhaps you meant --train.steps."),
    ],
)
def test_of_an_unknown_option_one_like_it_is_named(line, told, error_of):
    assert told in error_of(line.split())


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completions_name_commands_and_options(shell, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--completion", shell])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "vqvae2-fast" in text
    for word in ("train-vqvae", "extract", "--shard-records", "--dry-run"):
        assert word in text
    assert "{None}" not in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (TypeError("x"), 2),
        (FileNotFoundError(2, "x"), 2),
        (PermissionError(13, "x"), 2),
        (OverflowError("x"), 2),
        (OSError(28, "x"), 1),
        (OSError(5, "x"), 1),
        (RuntimeError("x"), 1),
        (EngineError("x"), 2),
        (NotImplementedError("x"), 2),
        (MemoryError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_exit_codes(error, code, monkeypatch, error_of):
    def fail(self):
        raise error

    monkeypatch.setattr(Info, "run", fail)
    error_of(["info"], code)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "cannot write x: No space left"), "error: cannot write x: No space left\n"),
        (PermissionError(13, "Permission denied", "x/y"), "error: x/y: Permission denied\n"),
        (FileNotFoundError("x does not exist"), "error: x does not exist\n"),
    ],
    ids=["ours", "the system's", "without a number"],
)
def test_an_error_of_the_system_is_told_by_path_and_words(error, text, monkeypatch, error_of):
    def fail(self):
        raise error

    monkeypatch.setattr(Info, "run", fail)
    assert text in error_of(["info"], 1 if error.errno == 28 else 2)


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
            warnings.formatwarning("skipped 1", UserWarning, "file.py", 1)
        ),
    )
    monkeypatch.setattr("vqvae2_fast.cli._print_result", lambda result, as_json: 0)
    assert main(["info"]) == 0
    assert shown == ["vqvae2-fast: warning: skipped 1\n"]
    assert "file.py" in warnings.formatwarning("x", UserWarning, "file.py", 1)


def test_an_error_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(Info, "run", lambda self: {}["a mistake in the package"])
    with pytest.raises(KeyError):
        main(["info"])


def test_a_class_that_another_package_derives_from_str_is_no_group_of_options():
    @dataclasses.dataclass
    class Link(str):
        target: int = 0

    command = dataclasses.make_dataclass("Command", [("address", str)])
    assert options_of(command) == ["--address"]
