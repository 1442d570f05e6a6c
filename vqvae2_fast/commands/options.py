"""The options of a command, and the value of one before the others are parsed."""

from __future__ import annotations

import dataclasses
from typing import Annotated, get_args, get_origin, get_type_hints

import tyro

from vqvae2_fast.console.words import did_you_mean
from vqvae2_fast.models.prior import PriorConfig

__all__ = ["check_options", "options_of", "value_of"]


def options_of(kind: type, prefix: str = "") -> list[str]:
    """The options of a command, such as --train.steps, and those that switch one off."""
    options = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        inner, part = hint, name
        if get_origin(hint) is Annotated:
            inner, *details = get_args(hint)
            if tyro.conf.Positional in details:
                continue
            part = next((d.name for d in details if getattr(d, "name", None) is not None), name)
        path = f"{prefix}.{part}" if prefix and part else prefix or part
        classes = [inner] if isinstance(inner, type) else []
        if inner is PriorConfig:  # stands for all the configurations derived from it
            classes += inner.__subclasses__()
        groups = [group for group in classes if dataclasses.is_dataclass(group)]
        for group in groups:
            options += options_of(group, path)
        if not groups:
            before, point, last = path.replace("_", "-").rpartition(".")
            switches = (last, f"no-{last}") if inner is bool else (last,)
            options += [f"--{before}{point}{switch}" for switch in switches]
    return list(dict.fromkeys(options))


def check_options(kind: type, command: str, arguments: list[str]) -> None:
    """Raises ValueError for the first option that a command does not have, with one like it."""
    options = ["--help", *options_of(kind)]
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in options:
            raise ValueError(
                f"expected an option of {command}, got {argument.partition('=')[0]}."
                f"{did_you_mean(name, options)} `vqvae2-fast {command} --help` lists them."
            )


def value_of(option: str, arguments: list[str], default: str) -> str:
    """The last value after an option on the command line, read before the others are parsed.

    Their defaults depend on it. With tyro's `overridable_config_cli` each preset would be a
    subcommand of its own, and a second option such as --level could not choose.
    """
    value = default
    for position, argument in enumerate(arguments):
        if argument == option and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return value
