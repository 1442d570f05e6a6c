"""log.jsonl of a run: one JSON object per line; an interrupted write leaves no partial line."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from vqvae2_fast.console.words import number
from vqvae2_fast.files.durable import explained, replace_file, write_all
from vqvae2_fast.files.untrusted import open_untrusted, read_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["RunLog"]

_MAX_BYTES = 2**30  # bytes, some 10⁷ lines


class RunLog:
    """The lines of a run, in memory and, with a path, in a file.

    Args:
        path: A file. Its lines up to `first_step` are kept; later or unreadable ones are dropped.
        on_log: Called with the step and the figures of each line that is written.
        how_to_continue: What follows "continue" where an error says how to go on.
    """

    def __init__(
        self,
        path: Path | None,
        first_step: int,
        on_log: Callable[[int, Mapping[str, float]], object] = lambda step, values: None,
        how_to_continue: str = "with resume",
    ) -> None:
        self._path, self._on_log, self._how_to_continue = path, on_log, how_to_continue
        self.lines: list[dict[str, Any]] = []
        self._latest: dict[str, float] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if first_step and path.exists():
            # What follows the last line break is a line that a crash cut off.
            read = map(_parse, read_untrusted(path, _MAX_BYTES).split(b"\n")[:-1])
            self.lines = [line for line in read if line and line["step"] <= first_step]
        kept = "".join(json.dumps(line) + "\n" for line in self.lines)
        replace_file(path, kept.encode())

    def write(self, step: int, **values: float) -> None:
        """Add a line.

        Raises:
            OSError: If the disk is full or fails; the file is then unchanged.
        """
        line = {"step": step, **values}
        if self._path is not None:
            self._append(self._path, (json.dumps(line) + "\n").encode())
        self.lines.append(line)
        self._latest |= values
        self._on_log(step, values)

    def note(self, step: int, **facts: list[str]) -> None:
        """Add a line of text, which goes only to the file. Raises as `write` does."""
        line = {"step": step, **facts}
        if self._path is not None:
            self._append(self._path, (json.dumps(line) + "\n").encode())
        self.lines.append(line)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        if self._path is not None:
            with open_untrusted(self._path, "ab") as file:
                os.fsync(file.fileno())

    def status(self, headline: str) -> str:
        """The latest loss and the latest value of the validation metric `headline`, if any."""
        shown = {"loss": "loss", f"val_{headline}": headline.replace("_", " ")}
        parts = [
            f"{text} {number(self._latest[n])}" for n, text in shown.items() if n in self._latest
        ]
        return "  ".join(parts)

    def _append(self, path: Path, content: bytes) -> None:
        then = f"continue {self._how_to_continue}"
        with open_untrusted(path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                with explained(f"cannot write to {path}", then=then):
                    write_all(file, content)
            except OSError:
                file.truncate(size)
                raise


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and type(value.get("step")) is int else None
