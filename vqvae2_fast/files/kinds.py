"""What an argument or a field has to be, in one line for each, with the words for its error.

`check_fields(self, steps=integer(1), seed=integer(0))` checks a dataclass, and `json_field` of
`json_file.py` a field of a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqvae2_fast.files.printable import short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "BOOLEAN",
    "TEXT",
    "Kind",
    "check_field",
    "check_fields",
    "integer",
    "list_of",
    "number",
    "one_of",
    "shown",
]


@dataclass(frozen=True)
class Kind:
    """What a value has to be.

    Args:
        words: What follows "expected NAME to be".
        fits: Whether a value of any type is so.
    """

    words: str
    fits: Callable[[Any], bool]


def integer(low: int, high: int | None = None) -> Kind:
    """An int from `low` to `high`, or at least `low`; True and 2.0 are none."""
    words = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    words = f"{low}" if high == low else words
    return Kind(
        words,
        lambda value: type(value) is int and low <= value and (high is None or value <= high),
    )


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """A finite number; `low` and `high` are allowed, `above` and `below` are not."""
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", low), ("<=", high), ("<", below))
        if bound is not None and math.isfinite(bound)
    ]

    def fits(value: Any) -> bool:
        return (
            isinstance(value, (int, float))
            and math.isfinite(value)
            and low <= value <= high
            and (above is None or value > above)
            and (below is None or value < below)
        )

    return Kind(" ".join(["a finite number", " and ".join(bounds)]).strip(), fits)


def one_of(choices: Iterable[object]) -> Kind:
    """One of these values."""
    known = tuple(choices)
    return Kind(f"one of {', '.join(map(repr, known))}", lambda value: value in known)


def list_of(kind: Kind) -> Kind:
    """A list of values of a kind."""
    return Kind(
        f"a list, each {kind.words}",
        lambda value: isinstance(value, list) and all(map(kind.fits, value)),
    )


BOOLEAN = Kind("true or false", lambda value: type(value) is bool)
# JSON can hold half of a surrogate pair, which cannot be printed.
TEXT = Kind(
    "a string of Unicode text",
    lambda value: isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value),
)


def check_field(name: str, value: object, kind: Kind) -> None:
    """Raises ValueError unless the value is of the kind."""
    if not kind.fits(value):
        raise ValueError(f"expected {name} to be {kind.words}, got {shown(value)}.")


def check_fields(config: object, group: str = "", **kinds: Kind) -> None:
    """`check_field` for each of these fields of a dataclass.

    Args:
        group: What stands before the names, such as "adversary.", where other groups have the same.
    """
    for name, kind in kinds.items():
        check_field(group + name, getattr(config, name), kind)


def shown(value: object) -> str:
    """The value for a message; a list or an object of a file may be megabytes long and deep."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return short(repr(value))
