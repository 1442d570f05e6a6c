"""Translates the arguments that the library names in its messages to the flags of a command."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, get_args, get_origin, get_type_hints

from vqvae2_fast.models.prior import PriorConfig

__all__ = ["as_flags", "flags_of", "value_of"]

# The origin of a message: a function or configuration that a user of flags has not called.
_SPEAKER = re.compile(r"^(\w+: (?=--)|\w+Config: )")


def flags_of(kind: type, prefix: str = "") -> dict[str, str]:
    """The flag of each option of a command, by the name of its field.

    If two fields have the same name, the command's own takes precedence over that of a group
    (`seed` of `train-classifier`), and `train.seed` over the seeds of other groups.
    """
    flags: dict[str, str] = {}
    for name, hint in reversed(get_type_hints(kind, include_extras=True).items()):
        inner, part = hint, name
        if get_origin(hint) is Annotated:
            inner, *details = get_args(hint)
            part = next((d.name for d in details if getattr(d, "name", None) is not None), name)
        path = f"{prefix}.{part}" if prefix and part else prefix or part
        classes = [inner] if isinstance(inner, type) else []
        if inner is PriorConfig:  # stands for all the configurations derived from it
            classes += inner.__subclasses__()
        groups = [flags_of(group, path) for group in classes if dataclasses.is_dataclass(group)]
        for group in groups:
            flags = flags | group if name == "train" else group | flags
        if not groups:
            flags[name] = f"--{path}".replace("_", "-")
    return flags


def as_flags(message: str, kind: type) -> str:
    """A message of the library with the flags of a command in place of the arguments it names.

    `name=True` becomes the flag that switches it on. A word without an underscore may be English:
    it is taken for a name only if the message contains `name must` or `name=` or begins with
    `name:`.
    """
    for name, flag in flags_of(kind).items():
        message = re.sub(rf"(?<![\w./-]){name}=True\b(?!, got)", flag, message)
        message = re.sub(rf"^(\w+: )?{name}(?=: )", flag, message)
        message = re.sub(rf"(?<![\w./-]){name}(?=( must|=))", flag, message)
        if "_" in name:
            message = re.sub(rf"(?<![\w./-]){name}(?![\w./-]\w|/)", flag, message)
    return _SPEAKER.sub("", message)


def value_of(flag: str, arguments: list[str], default: str) -> str:
    """The value after a flag on the command line, read before the other options are parsed.

    Their defaults depend on it. With tyro's `overridable_config_cli` each preset would be a
    subcommand of its own, and a second flag such as --level could not choose.
    """
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return default
