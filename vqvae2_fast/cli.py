"""The command line `vqvae2-fast`: commands are dataclasses, their fields are its options."""

from __future__ import annotations

import errno
import json
import sys
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vqvae2_fast.commands.demo import Demo
from vqvae2_fast.commands.evaluate import Evaluate
from vqvae2_fast.commands.extract import Extract
from vqvae2_fast.commands.info import Info
from vqvae2_fast.commands.reconstruct import Reconstruct
from vqvae2_fast.commands.sample import Sample
from vqvae2_fast.commands.train_classifier import TrainClassifier
from vqvae2_fast.commands.train_prior import TrainPrior
from vqvae2_fast.commands.train_vqvae import TrainVQVAE
from vqvae2_fast.files.printable import printable
from vqvae2_fast.models.configs import level_names, preset
from vqvae2_fast.runs.interrupt import InterruptedRun
from vqvae2_fast.training.presets import train_preset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.commands.common import Command

__all__ = ["main"]

_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a disk that is full or broken
_DESCRIPTION = (
    "Train VQ-VAE-2 (https://arxiv.org/abs/1906.00446) and draw images from it. "
    "Begin with `vqvae2-fast demo`; `vqvae2-fast COMMAND --help` explains a command; "
    "`vqvae2-fast --completion bash` (or zsh) prints completions for the shell."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0; 1 for a run that failed (it diverged, the disk is full, `info --verify` found damage, ...);
    2 for a wrong request (options, files that are not there or not what was asked for); 128 + its
    number after a signal: 130 for ctrl-C, 143 for SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--completion"]:
        if arguments[1:] not in (["bash"], ["zsh"]):
            print("vqvae2-fast: error: --completion: expected bash or zsh.", file=sys.stderr)
            return 2
        arguments[0] = "--tyro-print-completion"
    debug = "--debug" in arguments
    try:
        command = _parse(arguments)
        result = command.run()
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        if debug:
            print(printable(traceback.format_exc(), keep="\n"), file=sys.stderr)
        else:
            text = printable(_message(error), keep="\n")
            print(f"vqvae2-fast: error: {text}\n(--debug shows where)", file=sys.stderr)
        # A run that diverged or a machine that failed was asked for rightly: not 2.
        failed = (
            isinstance(error, (RuntimeError, MemoryError))
            or getattr(error, "errno", None) in _MACHINE
        )
        return 1 if failed else 2
    except InterruptedRun as stopped:
        print(f"vqvae2-fast: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print("vqvae2-fast: stopped; a run goes on with --resume.", file=sys.stderr)
        return 130
    if result.lines:  # under torchrun the first process speaks for all
        print(
            json.dumps(result.values, indent=2, default=str)
            if command.json
            else "\n".join(printable(line, keep="\n\t") for line in result.lines)
        )
    return result.exit_code


def _message(error: Exception) -> str:
    """What an error says, without the system's number of it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _parse(arguments: list[str]) -> Command:
    commands = {
        "demo": Demo,
        "train-vqvae": TrainVQVAE,
        "extract": Extract,
        "train-prior": TrainPrior,
        "train-classifier": TrainClassifier,
        "sample": Sample,
        "reconstruct": Reconstruct,
        "evaluate": Evaluate,
        "info": Info,
    }
    union: Any = None
    for name, command in commands.items():
        default: Any = tyro.MISSING_NONPROP
        if command in (TrainVQVAE, TrainPrior) and arguments[:1] == [name]:
            default = _with_preset(command, arguments)
        part = Annotated[command, tyro.conf.subcommand(name, default=default)]  # type: ignore[valid-type]
        union = part if union is None else union | part
    return tyro.cli(
        union,
        args=arguments,
        prog="vqvae2-fast",
        description=_DESCRIPTION,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _with_preset(command: type[TrainVQVAE] | type[TrainPrior], arguments: list[str]) -> Command:
    """The command with the models and training of `--preset` (and `--level`) as its defaults."""
    name = _value_of("--preset", arguments) or "emoji32"
    config, training = preset(name), train_preset(name)
    if command is TrainVQVAE:
        return TrainVQVAE(preset=name, model=config.vqvae, train=training.vqvae, flip=training.flip)
    level = _value_of("--level", arguments) or "top"
    levels = level_names(len(config.priors))
    number = levels.index(level) if level in levels else 0
    return TrainPrior(
        preset=name,
        level=level,
        model=replace(config.priors[number]),
        train=training.priors[number],
        class_balance=training.class_balance,
    )


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None
