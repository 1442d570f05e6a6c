"""Progress lines: the time left is in them, and a whole plan's too."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from vqvae2_fast.console import progress as module
from vqvae2_fast.console.progress import Progress, clock


@pytest.fixture
def now(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: time[0])
    return time


class Kernel(io.StringIO):
    """A stream like a kernel's: see tests/docs/test_notebooks.py for a real one."""

    __module__ = "ipykernel.iostream"


class Line:
    """A line below a cell, and all of its states."""

    def __init__(self, content: dict[str, str]) -> None:
        self.states = [content["text/plain"]]

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.states.append(content["text/plain"])


@pytest.fixture
def lines(monkeypatch):
    """What a notebook shows by IPython's `display`."""
    shown = []

    def display(content, *, raw, display_id):
        assert raw
        assert display_id
        shown.append(Line(content))
        return shown[-1]

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return shown


def test_clock():
    assert [clock(s) for s in (None, 0, 65, 3725)] == ["-:--", "0:00", "1:05", "1:02:05"]


def test_lines_tell_the_time_left_of_the_task_and_of_the_plan(now):
    stream = io.StringIO()
    progress = Progress({"one": 100, "two": 300}, stream=stream)
    with progress.task("one", 10) as task:
        now[0] = 20.0
        task.update(2, "loss 1.5")
        now[0] = 100.0
        task.update(10)
    with progress.task("two", 4) as task:
        now[0] = 200.0
        task.update(1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[1/2] one  2/10  left 1:20  all left 6:20  loss 1.5"
    assert lines[1] == "[1/2] one  10/10  took 1:40  all left 5:00  loss 1.5"
    assert lines[2] == "[2/2] two  1/4  left 5:00  all left 5:00"


def test_a_task_advances_by_what_was_finished_since(now):
    stream = io.StringIO()
    with Progress({"one": 100}, stream=stream).task("one", 10) as task:
        now[0] = 20.0
        task.update(2)
        now[0] = 40.0
        task.advance()
        now[0] = 60.0
        task.advance(2)
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["2/10", "3/10", "5/10"]


def test_later_tasks_are_estimated_from_the_whole_part_that_is_done(now):
    stream = io.StringIO()
    progress = Progress({"one": 100, "two": 300, "three": 70}, stream=stream)
    with progress.task("one", 10) as task:
        now[0] = 100.0
        task.update(10)
    with progress.task("two", 4) as task:
        now[0] = 250.0
        task.update(1)
    # 175 of the plan took 250 s, so the 70 of "three" take 100 s.
    assert stream.getvalue().splitlines()[-1] == "[2/3] two  1/4  left 7:30  all left 9:10"


def test_what_was_finished_before_a_run_was_resumed_is_no_sign_of_speed(now):
    stream = io.StringIO()
    progress = Progress({"one": 100, "two": 100, "three": 100}, stream=stream)
    with progress.task("one", 10, done=10) as task:
        now[0] = 1.0
        task.update(10)
    with progress.task("two", 10, done=5) as task:
        now[0] = 21.0
        task.update(7)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[1/3] one  10/10  took 0:01"
    # A fifth of "two" took 20 s, after a second in which nothing was left to do.
    assert lines[1] == "[2/3] two  7/10  left 0:30  all left 2:15"


def test_a_resumed_task_estimates_from_what_it_did_itself(now):
    stream = io.StringIO()
    with Progress(stream=stream).task("train", 100, done=90) as task:
        now[0] = 50.0
        task.update(95)
    assert stream.getvalue().splitlines()[0] == "train  95/100  left 0:50"


def test_lines_are_few(now):
    stream = io.StringIO()
    with Progress(stream=stream).task("train", 1000) as task:
        for step in range(1000):
            now[0] += 0.1
            task.update(step + 1)
    assert len(stream.getvalue().splitlines()) <= 11


@pytest.mark.parametrize("stream", [io.StringIO(), Kernel()], ids=["log", "notebook"])
def test_quiet_says_nothing(now, lines, stream):
    with Progress(stream=stream, quiet=True).task("train", 2) as task:
        now[0] = 60.0
        task.update(2)
    assert stream.getvalue() == ""
    assert lines == []


def test_a_task_is_one_line_in_a_notebook(now, lines):
    stream = Kernel()
    progress = Progress(stream=stream)
    for name in ("train", "extract"):
        with progress.task(name, 1000) as task:
            assert lines[-1].states == [f"{name}  0/1000  left -:--"]
            for step in range(1000):
                now[0] += 0.05
                task.update(step + 1, "loss 1.5")
    assert [line.states[-1] for line in lines] == [
        "train  1000/1000  took 0:50  loss 1.5",
        "extract  1000/1000  took 0:50  loss 1.5",
    ]
    assert all(len(line.states) <= 102 for line in lines)  # two a second
    assert stream.getvalue() == ""


def test_a_failed_task_leaves_its_line_in_a_notebook(now, lines):
    progress = Progress(stream=Kernel())
    with pytest.raises(KeyboardInterrupt), progress.task("train", 10) as task:
        now[0] = 1.0
        task.update(1)
        raise KeyboardInterrupt
    with progress.task("train", 10):
        pass
    assert [line.states[-1] for line in lines] == [
        "train  1/10  left 0:09",
        "train  0/10  left -:--",
    ]


def test_control_characters_are_escaped_in_a_notebook_too(lines):
    with Progress(stream=Kernel()).task("a\x1b[2Jb", 1):
        pass
    assert lines[0].states[0].startswith("a\\x1b[2Jb  0/1")


def test_a_notebook_shows_progress_on_its_standard_output(lines, monkeypatch):
    """Standard error has the look of a failure there."""
    output, error = Kernel(), Kernel()
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr("sys.stderr", error)
    progress = Progress()
    with progress.task("train", 1):
        progress.say("saved")
    assert len(lines) == 1
    assert (output.getvalue(), error.getvalue()) == ("saved\n", "")


def test_a_narrow_terminal_cuts_the_status_never_the_time_left(now, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress({"train prior bottom": 1}, stream=stream)
    with progress.task("train prior bottom", 1500) as task:
        now[0] = 600.0
        task.update(750, "loss 1.234  bits per image 1234.5")
    assert "750/1500  left 10:00  all left 10:00 " in stream.getvalue()
    assert "bits per image 1234.5" not in stream.getvalue()


def test_escape_sequences_and_markup_in_names_are_shown(monkeypatch):
    stream = io.StringIO()
    Progress(stream=stream).say("a\x1b[2Jb\nc")
    assert stream.getvalue() == "a\\x1b[2Jb\nc\n"
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(stream=stream).task("\x1b]0;title\x07[/red]", 2) as task:
        task.update(2, "[bold]b\x1b[2J")
    text = stream.getvalue()
    assert "\\x1b]0;title\\x07[/red]" in text
    assert "[bold]b\\x1b[2J" in text
    assert "\x1b]0;" not in text
    assert "b\x1b[2J" not in text
