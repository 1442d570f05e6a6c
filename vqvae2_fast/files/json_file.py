"""JSON files and the fields of configurations: what each has to be, in one line for each field.

Small untrusted JSON files are read up to a bound, and must hold an object. A `Kind` is a test with
its words: `check_fields(self, steps=integer(1), seed=integer(0))` in a dataclass,
`json_field(values, "version", integer(1), path)` for a file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import read_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = [
    "BOOLEAN",
    "MAX_TEXT_BYTES",
    "TEXT",
    "Kind",
    "check_field",
    "check_fields",
    "damaged",
    "integer",
    "json_field",
    "list_of",
    "number",
    "object_in",
    "one_of",
    "read_object",
]


# The largest preset has a configuration of 2 KiB and 120 KiB of names and shapes.
MAX_TEXT_BYTES = 8 * 2**20


def read_object(
    path: Path, *, inside: Path | None = None, max_bytes: int = MAX_TEXT_BYTES
) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        inside: As for `open_untrusted`.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        ValueError: It is not a regular file, is larger than `max_bytes`, or holds no object. The
            message names the path.
    """
    return object_in(read_untrusted(path, max_bytes, inside=inside), path)


def object_in(content: bytes, path: Path | str) -> dict[str, Any]:
    """The object that JSON text holds. Raises ValueError, in the name of `path`, if it has none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)} is damaged or not JSON: {short(error)}.") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{printable(path)} is damaged: expected a JSON object, got {type(value).__name__}."
        )
    return value


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
        raise ValueError(f"expected {name} to be {kind.words}, got {_shown(value)}.")


def check_fields(config: object, group: str = "", **kinds: Kind) -> None:
    """`check_field` for each of these fields of a dataclass.

    Args:
        group: What stands before the names, such as "adversary.", where other groups have the same.
    """
    for name, kind in kinds.items():
        check_field(group + name, getattr(config, name), kind)


def _shown(value: object) -> str:
    """The value for a message; a list or an object of a file may be megabytes long and deep."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return short(repr(value))


def damaged(source: object, what: str) -> ValueError:
    """The error for a file that does not hold what its writers write.

    Args:
        source: Its path.
    """
    return ValueError(f"{printable(source)} is damaged: {what}.")


def json_field(values: Mapping[str, Any], name: str, kind: Kind, source: object) -> Any:
    """A field of the object in a file, if it is of the kind.

    Raises:
        ValueError: It is not, or there is none.
    """
    value = values.get(name)
    if not kind.fits(value):
        raise damaged(source, f"expected {name} to be {kind.words}, got {_shown(value)}")
    return value
