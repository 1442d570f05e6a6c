"""Progress that always shows the time left: bars in a terminal, a line for each task in a notebook,
plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from vqvae2_fast.files.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.progress import Progress as Bars

__all__ = ["Progress", "Task", "clock"]

# Seconds between plain lines: few enough to read in a log, often enough to show that it is alive.
_LINE_INTERVAL = 10.0
# Seconds between states of a line in a notebook, each of which is a message to the browser.
_STATE_INTERVAL = 0.5


def clock(seconds: float | None) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on; `-:--` while unknown."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows named tasks one after the other and, given a plan, the time left for all of them.

    Args:
        plan: Names of all tasks with their share of the whole time, in any unit. The time left for
            all is that of the task plus an estimate for the later ones, from how long the part of
            the plan took that was done here, without what was finished before a run was resumed.
        stream: Where to write; standard error by default, so that results can be piped. In a
            notebook, which shows standard error like a failure, standard output.
        quiet: Show nothing.
    """

    def __init__(
        self,
        plan: Mapping[str, float] | None = None,
        stream: TextIO | None = None,
        quiet: bool = False,
    ) -> None:
        self._plan = dict(plan or {})
        self._finished: list[str] = []
        self._resumed = 0.0  # the part of the plan that was finished before
        self._worked = 0.0  # seconds in finished tasks
        self._stream = stream or (sys.stdout if _is_notebook(sys.stdout) else sys.stderr)
        self._quiet = quiet
        self._in_place = _is_notebook(self._stream)
        self._line: Any = None  # the handle of the line that a notebook shows for the task
        self._bars = self._stream.isatty() and not (quiet or self._in_place)
        self.interval = _STATE_INTERVAL if self._in_place else _LINE_INTERVAL

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        """A task of `total` units, `done` of which were finished before (a resumed run)."""
        start = time.monotonic()
        self._resumed += self._plan.get(name, 0.0) * done / max(1, total)
        number = f"[{len(self._finished) + 1}/{len(self._plan)}] " if self._plan else ""
        if self._bars:
            with _bars(self._stream) as bars:
                yield Task(self, name, number, total, done, bars)
        else:
            task = Task(self, name, number, total, done, None)
            if self._in_place:
                task.show()
            try:
                yield task
                task.finish()
            finally:
                self._line = None
        self._finished.append(name)
        self._worked += time.monotonic() - start

    def say(self, text: str) -> None:
        """Print a separate line, outside any task; control characters in names are escaped."""
        if not self._quiet:
            print(printable(text, keep="\n\t"), file=self._stream, flush=True)

    def show(self, line: str) -> None:
        """A state of the task: in a notebook in place of the last one, else a line of its own."""
        if not self._in_place:
            self.say(line)
        elif not self._quiet:
            # The kernel runs on IPython, so it is there. A saved notebook keeps the last state.
            from IPython.display import display

            content = {"text/plain": printable(line)}
            if self._line is None:
                show: Any = display  # untyped
                self._line = show(content, raw=True, display_id=True)
            else:
                self._line.update(content, raw=True)

    def seconds_left_of_all(
        self, name: str, fraction: float, elapsed: float, left: float | None
    ) -> float | None:
        """Seconds left for the plan; None without one, or before anything was done here.

        Args:
            fraction: How much of task `name` is done.
            elapsed: Seconds that the task has taken so far.
            left: Seconds that are left for the task, or None if that is not known.
        """
        if name not in self._plan:
            return None
        share = self._plan[name]
        finished = sum(self._plan.get(task, 0.0) for task in self._finished)
        done = finished + fraction * share - self._resumed
        if done <= 1e-9 * share:  # a difference of rounded sums
            return None
        pace = (self._worked + elapsed) / done
        if left is None:
            left = pace * (1 - fraction) * share
        return left + pace * (sum(self._plan.values()) - finished - share)


class Task:
    """One task of a `Progress`; `update` says how far it has come."""

    def __init__(
        self,
        owner: Progress,
        name: str,
        number: str,
        total: int,
        done: int,
        bars: Bars | None,
    ) -> None:
        self._owner, self._name, self._number, self._bars = owner, name, number, bars
        self._total, self._first, self._done = total, done, done
        self._start = self._last_line = time.monotonic()
        self._status, self._shown = "", -1
        if bars is not None:
            self._bar = bars.add_task(
                printable(number + name), total=total, completed=done, time="", status=""
            )

    def update(self, done: int, status: str = "", total: int | None = None) -> None:
        """Say that `done` of the total units are finished; `status` is shown next to it.

        Args:
            total: How many units there are from now on, if that has changed.
        """
        self._done, self._status, self._total = done, status or self._status, total or self._total
        if self._bars is not None:
            self._bars.update(
                self._bar,
                total=self._total,
                completed=done,
                time=self._time(),
                status=printable(self._status),
            )
        elif time.monotonic() - self._last_line >= self._owner.interval:
            self.show()

    def advance(self, by: int = 1) -> None:
        """Say that this many more units are finished."""
        self.update(self._done + by)

    def finish(self) -> None:
        """The last line, with the time taken."""
        if self._bars is None and self._shown != self._done:
            self.show()

    def _time(self) -> str:
        elapsed = time.monotonic() - self._start
        worked = self._done - self._first
        left = elapsed * (self._total - self._done) / worked if worked else None
        parts = [f"{self._done}/{self._total}"]
        if self._done < self._total:
            parts.append(f"left {clock(left)}")
        else:
            parts.append(f"took {clock(elapsed)}")
        fraction = self._done / max(1, self._total)
        of_all = self._owner.seconds_left_of_all(self._name, fraction, elapsed, left)
        if of_all is not None:
            parts.append(f"all left {clock(of_all)}")
        return "  ".join(parts)

    def show(self) -> None:
        """Show how far the task has come now, in a line."""
        self._last_line, self._shown = time.monotonic(), self._done
        status = f"  {self._status}" if self._status else ""
        self._owner.show(f"{self._number}{self._name}  {self._time()}{status}")


def _is_notebook(stream: TextIO) -> bool:
    """Whether ipykernel shows this stream below a cell, where no terminal moves its cursor."""
    return type(stream).__module__.startswith("ipykernel.")


def _bars(stream: TextIO) -> Bars:
    # Imported here: it takes a tenth of a second, for which the whole package would have to wait.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    return Progress(
        # Markup is off, because a name may contain brackets.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[time]}", markup=False, table_column=Column(no_wrap=True)),
        # In a narrow terminal this column is cut, never the time left.
        TextColumn(
            "{task.fields[status]}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
        console=Console(file=stream),
        expand=True,
    )
