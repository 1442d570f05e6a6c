"""log.jsonl of a run: one JSON object a line, a whole line or none."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from vqvae2_fast.console.numbers import number
from vqvae2_fast.files.durable import replace_file, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["RunLog"]


class RunLog:
    """The lines of a run, in memory and, with a path, in a file.

    Args:
        path: A file whose lines up to `first_step` stay; those past it, or unreadable, are dropped.
        on_log: Called with the step and the figures of each line that is written.
    """

    def __init__(
        self,
        path: Path | None,
        first_step: int,
        on_log: Callable[[int, Mapping[str, float]], object] = lambda step, values: None,
    ) -> None:
        self._path, self._on_log = path, on_log
        self.lines: list[dict[str, Any]] = []
        self._latest: dict[str, float] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if first_step and path.exists():
            # What follows the last line's end was cut off by a crash.
            read = map(_parse, path.read_bytes().split(b"\n")[:-1])
            self.lines = [line for line in read if line and line["step"] <= first_step]
        kept = "".join(json.dumps(line) + "\n" for line in self.lines)
        replace_file(path, kept.encode())

    def write(self, step: int, **values: float) -> None:
        """Add a line.

        Raises:
            OSError: If the disk is full, ...; the file is then as it was.
        """
        line = {"step": step, **values}
        if self._path is not None:
            _append(self._path, (json.dumps(line) + "\n").encode())
        self.lines.append(line)
        self._latest |= values
        self._on_log(step, values)

    def note(self, step: int, **facts: list[str]) -> None:
        """Add a line of words, which only the file gets. Raises as `write` does."""
        line = {"step": step, **facts}
        if self._path is not None:
            _append(self._path, (json.dumps(line) + "\n").encode())
        self.lines.append(line)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        if self._path is not None:
            with self._path.open("ab") as file:
                os.fsync(file.fileno())

    def status(self, headline: str) -> str:
        """The latest loss and the validation metric `headline`, as far as there are any."""
        shown = {"loss": "loss", f"val_{headline}": headline.replace("_", " ")}
        parts = [
            f"{text} {number(self._latest[n])}" for n, text in shown.items() if n in self._latest
        ]
        return "  ".join(parts)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and type(value.get("step")) is int else None


def _append(path: Path, content: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            write_all(file, content)
        except OSError as error:
            file.truncate(size)
            raise OSError(
                error.errno,
                f"train: cannot write to {path}: {error.strerror}. Make room, then continue with "
                "resume=True",
            ) from error
