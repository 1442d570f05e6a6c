"""Kills commands at random moments, resumes them, and compares the results with undisturbed ones.

    python tools/kill_tests [SUBJECT ...] [--kills 20] [--seed 0]

A subject is a command, run on small models and few images by one process or by two that share the
work. The processes are ended by SIGKILL just before a random one of the changes that they make to
the disk, or some time after it, and are started again with --resume until they finish. Where
Debian's package `faketime` is installed, the clock jumps by up to five years, back or forward,
before each start.

After each kill, nothing that was finished may be gone; checkpoints, stores and samples must be
sound; no visible file may be half written. Once the command has finished, its files must be those
of an undisturbed run, byte for byte, none more and none fewer; then it starts again, until the
number of kills is reached. Logs and results hold times, which would differ: the clock that they are
taken from stands still. Exits with 1 at the first failure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from subjects import SUBJECTS, Work, files, prepare

from vqvae2_fast.data.code_format import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

JUMP = 5 * 365 * 86400  # seconds that the clock jumps by at most
FOREVER = 600.0  # seconds
CHANGES = ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink")


@dataclass(frozen=True)
class Kill:
    """When to kill: this many seconds after the processes have made this many changes on the disk.

    With a delay of 0 the last of these is not made any more.
    """

    changes: int
    delay: float


def in_process(work: Work, clock: int, kill: Kill | None, changes: Any) -> None:
    """What a process does; `changes` counts the changes of the disk by all of them."""
    torch.set_num_threads(1)
    if "FAKETIME" in os.environ:
        now = time.time()
        os.environ["FAKETIME"] = f"{clock:+d}"
        assert abs(time.time() - now - clock) < 60, "the clock did not jump"

    def die() -> None:
        if kill is not None:
            time.sleep(kill.delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(change: Callable[..., None]) -> Callable[..., None]:
        def change_or_die(*arguments: Any, **options: Any) -> None:
            with changes.get_lock():
                changes.value += 1
                last = kill is not None and changes.value == kill.changes
            if last and kill is not None and kill.delay:
                threading.Thread(target=die, daemon=True).start()
            elif last:
                die()
            change(*arguments, **options)

        return change_or_die

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    still = time.monotonic()
    time.monotonic = lambda: still
    work()


def run(works: Sequence[Work], clock: int = 0, kill: Kill | None = None) -> tuple[bool, int]:
    """Runs each work in a forked process; once one is killed, so are the others.

    Returns:
        Whether any was killed, and the changes of the disk that they have asked for.
    """
    context = multiprocessing.get_context("fork")
    changes = context.Value("i", 0)
    processes = [
        context.Process(target=in_process, args=(work, clock, kill, changes)) for work in works
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + FOREVER
    while alive := [process.sentinel for process in processes if process.is_alive()]:
        wait(alive, FOREVER)
        assert time.monotonic() < end, "the work does not end"
        if any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
    codes = [process.exitcode for process in processes]
    assert all(code in (0, -signal.SIGKILL) for code in codes), f"exit codes {codes}"
    return any(codes), changes.value


def is_changed_in_place(name: str) -> bool:
    """Whether a file is appended to or replaced before the command finishes."""
    path = Path(name)
    return "best" in path.parts or path.suffix == ".jsonl" or path.name == MANIFEST


def kill_and_resume(name: str, place: Path, kills: int, rng: random.Random) -> None:
    """Kill and resume a subject this number of times, and compare what it leaves."""
    subject, out = SUBJECTS[name], place / name
    begun = time.monotonic()
    killed, changes = run(subject.work(place, out, False))
    assert not killed
    undisturbed, gap = subject.content(out), (time.monotonic() - begun) / changes
    hits, finished, left, resume, done = 0, 0, 0, False, set[object]()
    shutil.rmtree(out)
    while hits < kills or resume:
        # Every other kill hits between two changes. After the last kill the command may finish.
        kill = Kill(rng.randint(1, changes), rng.uniform(0, 2 * gap) * (hits % 2))
        works, clock = subject.work(place, out, resume), rng.randint(-JUMP, JUMP)
        if run(works, clock, kill if hits < kills else None)[0]:
            hits, resume, before, done = hits + 1, True, done, subject.done(out)
            assert before <= done, f"{name}: gone are {sorted(before - done, key=str)}"
            found = files(out)
            for path, data in found.items():
                if path in undisturbed and not is_changed_in_place(path):
                    assert data == undisturbed[path], f"{name}: {path} is half written, or another"
            left += sum("/." in f"/{path}" for path in found)
            print(f"{name}: kill {hits} after {kill.changes} changes, {len(done - before)} done")
            continue
        content = subject.content(out)
        names = sorted(content.keys() | undisturbed.keys())
        differ = [path for path in names if content.get(path) != undisturbed.get(path)]
        assert not differ, f"{name}: {differ} differ from those of an undisturbed run"
        finished, resume, done = finished + 1, False, set()
        shutil.rmtree(out)
    print(
        f"{name}: {hits} kills among {changes} changes of the disk; {finished} results, each equal "
        f"byte for byte to an undisturbed one; {left} unfinished files were left and cleared.",
        flush=True,
    )


def with_faketime() -> None:
    """Starts this program again under faketime, so that its processes can set their clocks."""
    if "FAKETIME" in os.environ:
        return
    if shutil.which("faketime") is None:
        print("faketime is not installed: the clock does not jump.", flush=True)
        return
    # Without shared memory: a process that is killed while it holds its lock would stop the others.
    names = ("FAKETIME_DISABLE_SHM", "FAKETIME_DONT_FAKE_MONOTONIC", "FAKETIME_NO_CACHE")
    os.environ |= dict.fromkeys((*names, "NO_FAKE_STAT"), "1")
    os.execvp("faketime", ["faketime", "-m", "-f", "+0", sys.executable, *sys.argv])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--kills", type=int, default=20, help="of each subject")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error(f"--kills: expected 1 or more, got {arguments.kills}")
    unknown = set(arguments.subjects) - SUBJECTS.keys()
    if unknown:
        parser.error(f"expected subjects of {', '.join(SUBJECTS)}, got {', '.join(unknown)}")
    with_faketime()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name in arguments.subjects or SUBJECTS:
            kill_and_resume(name, Path(folder), arguments.kills, random.Random(arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
