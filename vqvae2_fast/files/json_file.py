"""Small JSON files, read with distrust: no more of them than a bound, and nothing but an object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MAX_TEXT_BYTES", "read_object", "short"]

# The largest preset has a configuration of 2 KiB and 120 KiB of names and shapes.
MAX_TEXT_BYTES = 8 * 2**20


def short(value: object) -> str:
    """What a file holds, or an error about it, short enough for a message."""
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no object, or more than MAX_TEXT_BYTES; says so of the path.
    """
    with path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{path} is larger than {MAX_TEXT_BYTES} bytes.")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no JSON: {short(error)}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, got {type(value).__name__}.")
    return value
