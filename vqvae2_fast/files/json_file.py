"""Small untrusted JSON files: read up to a bound, and held to be an object with such fields."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vqvae2_fast.files.kinds import shown
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import read_untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vqvae2_fast.files.kinds import Kind

__all__ = [
    "MAX_TEXT_BYTES",
    "damaged",
    "json_field",
    "object_in",
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
        raise damaged(source, f"expected {name} to be {kind.words}, got {shown(value)}")
    return value
