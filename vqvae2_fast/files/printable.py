"""Untrusted names and texts in a form that is safe to show on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["printable", "short", "why_no_folder"]


def printable(text: object, *, keep: str = "") -> str:
    """The text with everything that is not printable escaped, as in `a\\x1b[2Jb`.

    Control characters can move the cursor, change a terminal's title or hide text; marks of writing
    direction can make a name look like another; half a surrogate pair cannot be written at all.

    Args:
        keep: Characters that stay as they are, such as line ends in a longer message.
    """
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii")
        for c in str(text)
    )


def short(value: object, limit: int = 100) -> str:
    """The text of a value, printable and cut to `limit` characters, for use in a message."""
    # Cut first: the text may be megabytes long.
    text = printable(str(value)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def why_no_folder(path: Path) -> str | None:
    """What a message says of a path that is no folder, after its name; None for a folder."""
    if path.is_dir():
        return None
    return "is a file" if path.exists() else "does not exist"
