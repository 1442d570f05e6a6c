"""Numbers, records and remedies for misspelt words, for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

__all__ = ["byte_size", "counted", "described", "did_you_mean", "number", "together"]


def byte_size(count: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def number(value: float, digits: int = 4) -> str:
    """A number in `digits` significant digits: no exponent, commas between thousands.

    36321.7 is 36,320; 0.0123449 is 0.01234; whole numbers have no decimal point.
    """
    if not math.isfinite(value):
        return f"{value}"
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{round(value, places):,.{max(0, places)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number with its noun: 1 image, 1,000 images.

    Args:
        several: The plural, by default with an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def together(names: Sequence[str]) -> str:
    """Names in a sentence: top, middle and bottom."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence that names the choice most like a misspelt word, after a space; "" without one."""
    by_lower_case = {choice.lower(): choice for choice in choices}
    found = get_close_matches(word.lower(), by_lower_case, n=1)
    return f" Perhaps you meant {by_lower_case[found[0]]}." if found else ""


def described(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """A record as lines, one per field, records inside it indented below their names.

    A field `..._size` is written as 32x32, one `..._sizes` as 8x8, 16x16, and `num_codes` as
    number of codes.
    """
    lines = []
    for name, value in values.items():
        title = f"{indent}{re.sub('^num_', 'number of ', name).replace('_', ' ')}:"
        if isinstance(value, Mapping) and value:
            lines += [title, *described(value, indent + "  ")]
        else:
            lines.append(f"{title} {_text(name, value)}")
    return lines


def _text(name: str, value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if name.endswith("_size") and isinstance(value, Sequence):
        return "x".join(str(side) for side in value)
    if isinstance(value, Sequence) and value:
        of_each = name.removesuffix("s")  # level_sizes: each is a level_size
        return ", ".join(_text(of_each, item) for item in value)
    return "none" if not value else str(value)
