"""Translates the arguments that the library names in its messages to the flags of a command."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, get_args, get_origin, get_type_hints

from vqvae2_fast.models.prior import PriorConfig

__all__ = ["as_flags", "flags_of", "value_of"]

# The origin of a message: a function or configuration that a user of flags has not called.
_SPEAKER = re.compile(r"^(\w+: (?=(expected )?--)|\w+Config: )")
# A place that is not inside braces, where a message shows values as Python writes them.
_NO_BRACES = r"(?![^{}]*\})"


def flags_of(kind: type, prefix: str = "") -> dict[str, str]:
    """The flag of each option of a command, by the name of its field; for one in a group also by
    both names, such as `adversary.weight`.

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
            flags |= {f"{name}.{field}": flag for field, flag in group.items()}
            flags = flags | group if name == "train" else group | flags
        if not groups:
            flags[name] = f"--{path}".replace("_", "-")
    return flags


def as_flags(message: str, kind: type) -> str:
    """A message of the library with the flags of a command in place of the arguments it names.

    `name=True` becomes the flag that switches it on, and `name=False` the one that switches it off.
    In a command with --resume, that stands for "by the same call"; in others, "the same command"
    stands for both.
    A word without an underscore or a point may be English: it is taken for a name only if the
    message contains `name must` or `name=` or begins with `name:` or with `expected name` and what
    is expected.
    """
    flags = flags_of(kind)
    if "resume" in flags:
        message = message.replace("by the same call", f"with {flags['resume']}")
    else:  # such a command repeats, or continues what it finds
        message = message.replace("resume=True", "the same command")
        message = message.replace("by the same call", "with the same command")
    for field, flag in flags.items():
        name = rf"(?<![\w./-]){re.escape(field)}"
        off = re.sub(r"^--(.*\.)?", r"\g<0>no-", flag)
        message = re.sub(rf"{name}=True\b(?!, got){_NO_BRACES}", flag, message)
        message = re.sub(rf"{name}=False\b(?!, got){_NO_BRACES}", off, message)
        message = re.sub(rf"^(\w+: )?{re.escape(field)}(?=: )", flag, message)
        message = re.sub(rf"{name}(?=( must|=)){_NO_BRACES}", flag, message)
        begun = rf"^((\w+: )?expected ){re.escape(field)}(?= (to be|one of|>=) )"
        message = re.sub(begun, rf"\g<1>{flag}", message)
        if "_" in field or "." in field:
            message = re.sub(rf"{name}(?![\w./-]\w|/){_NO_BRACES}", flag, message)
    return _SPEAKER.sub("", message)


def value_of(flag: str, arguments: list[str], default: str) -> str:
    """The last value after a flag on the command line, read before the other options are parsed.

    Their defaults depend on it. With tyro's `overridable_config_cli` each preset would be a
    subcommand of its own, and a second flag such as --level could not choose.
    """
    value = default
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value
