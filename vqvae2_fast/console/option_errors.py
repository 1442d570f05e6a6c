"""What is wrong with the value of an option that takes numbers, in words.

The parser of the command line shows Python's own errors, such as "invalid literal for int() with
base 10".
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["number_error"]

_OPTION = re.compile(r"Error parsing\W+?(--[\w.-]+):")
_NUMBERS = {"INT", "FLOAT"}
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(,\d{3})+")


def number_error(said: str, arguments: Sequence[str]) -> str | None:
    """A sentence that names an option of numbers and the word that is none.

    Args:
        said: What the parser printed: the option in its first line, and further down the option
            with what it takes, such as `--train.steps INT` or `--top-p [FLOAT [FLOAT ...]]`.
        arguments: What it was given.

    Returns:
        None if the parser refused something else.
    """
    found = _OPTION.search(said)
    if found is None:
        return None
    option = found[1]
    takes = re.search(rf"^\W*{re.escape(option)} (.+?)\W*$", said, re.MULTILINE)
    kinds = set(re.findall(r"\w+|\{.*?\}", takes[1])) - {"{None}"} if takes else set()
    if len(kinds) != 1 or not kinds <= _NUMBERS:
        return None
    whole = kinds == {"INT"}
    for word in _values(option, arguments):
        if not _reads(int if whole else float, word):
            kind = "whole number" if whole else "number"
            return f"{option}: expected a {kind}{_such_as(word, whole)}, got {word!r}."
    return None


def _values(option: str, arguments: Sequence[str]) -> Iterator[str]:
    """The words that follow an option, each time that it is given."""
    ours = False
    for argument in arguments:
        if argument.startswith("--"):
            name, has_value, value = argument.partition("=")
            ours = name.replace("_", "-") == option
            if ours and has_value:
                yield value
        elif ours and argument != "None":
            yield argument


def _reads(kind: type[int] | type[float], word: str) -> bool:
    try:
        kind(word)
    except ValueError:
        return False
    return True


def _such_as(word: str, whole: bool) -> str:
    """The number that was meant, if it was written as 1e3, 1,000, 0,9 or 90%."""
    text = word.removesuffix("%")
    text = text.replace(",", "" if _THOUSANDS.fullmatch(text) else ".")
    if not _reads(float, text) or not math.isfinite(number := float(text)):
        return ""
    if word.endswith("%"):
        number /= 100
    if whole and (not number.is_integer() or abs(number) >= 1e15):
        return ""
    return f", such as {number:.15g}"
