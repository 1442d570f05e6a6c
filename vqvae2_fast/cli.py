"""The command line `vqvae2-fast`: commands are dataclasses, their fields are its options."""

from __future__ import annotations

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
from vqvae2_fast.commands.train_prior import TrainPrior
from vqvae2_fast.commands.train_vqvae import TrainVQVAE
from vqvae2_fast.models.configs import level_names, preset
from vqvae2_fast.training.presets import train_preset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.commands.common import Command

__all__ = ["main"]

_DESCRIPTION = (
    "Train VQ-VAE-2 (https://arxiv.org/abs/1906.00446) and draw images from it. "
    "Begin with `vqvae2-fast demo`; `vqvae2-fast COMMAND --help` explains a command."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for a run that failed, 2 for a wrong request."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        command = _parse(arguments)
        result = command.run()
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"vqvae2-fast: error: {error}\n(--debug shows where)", file=sys.stderr)
        # A run that diverged or a machine that failed was asked for rightly: not 2.
        return 1 if isinstance(error, RuntimeError) else 2
    except KeyboardInterrupt:
        print("vqvae2-fast: stopped; a run goes on with --resume.", file=sys.stderr)
        return 130
    print(
        json.dumps(result.values, indent=2, default=str)
        if command.json
        else "\n".join(result.lines)
    )
    return 0


def _parse(arguments: list[str]) -> Command:
    commands = {
        "demo": Demo,
        "train-vqvae": TrainVQVAE,
        "extract": Extract,
        "train-prior": TrainPrior,
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
        union, args=arguments, prog="vqvae2-fast", description=_DESCRIPTION,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip


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
        preset=name, level=level, model=replace(config.priors[number]),
        train=training.priors[number], class_balance=training.class_balance,
    )  # fmt: skip


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None
