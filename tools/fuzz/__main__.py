"""Damages files and reads them: no loader may crash, hang, reach out or fill the memory.

    python tools/fuzz                      # all targets, 1,000 files each
    python tools/fuzz tar hf --files 10000 --seed 5
    python tools/fuzz --minutes 60         # in turn, until the time is over
    python tools/fuzz tar --case 123       # one case again, in this process, with its traceback

Each file is read in a child process whose memory is limited and whose opening of files, starting of
programs and connecting to networks is watched (by Python's audit events, which do not see what
libraries in C open). A file may be read, or be refused by a ValueError or OSError that names it and
has nothing in it that a terminal would act on. Anything else is a finding: it is printed with its
number, and its files are kept in --keep. The same target, seed and number make the same case.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
from mutate import damage, write_files
from targets import TARGETS, Target

import vqvae2_fast

# This must be set before a target imports `datasets`.
_HOME = tempfile.TemporaryDirectory(prefix="fuzz-home-")
os.environ.update(
    HF_HOME=_HOME.name,
    HF_DATASETS_OFFLINE="1",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)
_SECONDS = 20.0  # seconds that a case may take on a loaded machine; a tenth of a second is usual
_MEMORY = 512 * 2**20  # memory beyond what the process has when it begins
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_CONNECTS = ("socket.connect", "socket.getaddrinfo")
# Where Python, its packages and the system keep what they need to run.
_OWN = (
    _HOME.name,
    sys.prefix,
    sys.base_prefix,
    # Also what is no folder, such as the name that an editable installation adds.
    *(os.path.abspath(path) for path in sys.path if len(path) > 1),
    str(Path(vqvae2_fast.__file__).parent),
    "/proc/self",
    "/proc/stat",
    "/sys/",
    "/usr/lib",
    "/usr/share/zoneinfo",
    "/dev/null",
    "/dev/shm",
    "/dev/urandom",
)


def sound_files(target: Target, folder: Path) -> list[dict[str, bytes]]:
    """The files of each variant of a target's input, by their paths."""
    variants = []
    for number, make in enumerate(target.make):
        made = folder / str(number)
        made.mkdir(parents=True)
        make(made)
        variants.append(
            {
                path.relative_to(made).as_posix(): path.read_bytes()
                for path in sorted(made.rglob("*"))
                if path.is_file() and path.name != ".lock"
            }
        )
    return variants


def read_sound(target: Target, files: dict[str, bytes], place: Path) -> None:
    """Reads a variant of a target's input as it was made."""
    (place / "out").mkdir(parents=True)
    write_files(place / "input", files, place / "secret")
    target.read(place / "input", place / "out")


class Watch:
    """What this process opens, starts and connects to, by Python's audit events."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith(self.allowed):
                self.seen.append(f"opened {path}")
        elif event in _STARTS or event in _CONNECTS:
            self.seen.append(f"{event} {arguments!r}"[:200])


def run_case(
    name: str, files: list[dict[str, bytes]], seed: int, number: int, place: Path, watch: Watch
) -> tuple[str, str]:
    """Makes a case in a folder and reads it. Returns how the reading ended and what it said."""
    target, random = TARGETS[name], Random(f"{name}/{seed}/{number}")
    shutil.rmtree(place, ignore_errors=True)
    folder, out, secret = place / "input", place / "out", place / "secret"
    for made in (folder, out):
        made.mkdir(parents=True)
    secret.write_bytes(next(iter(files[0].values())))
    write_files(folder, damage(random, random.choice(files)), secret)
    if target.seal is not None and random.random() < 0.6 and _is_plain(folder):
        with suppress(OSError, ValueError):  # no longer files that have sums
            target.seal(folder)
    before = sorted(place.iterdir())
    watch.seen.clear()
    watch.allowed = (str(folder), str(out), tempfile.gettempdir() + "/tmp", *_OWN)
    watch.on = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder, out)
        how, said = "read", ""
    except (ValueError, OSError) as error:
        how, said = "refused", _message(error)
        if str(folder) not in said:
            how = "unnamed"
        elif not all(c.isprintable() or c == "\n" for c in said):
            how = "unprintable"
        if how != "refused":
            said = f"{type(error).__name__}: {said}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        how = "memory" if isinstance(error, MemoryError) else "raised"
        said = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    watch.on = False
    if watch.seen:
        return "reached out", "; ".join(watch.seen)
    if sorted(place.iterdir()) != before:
        return "wrote", ", ".join(path.name for path in place.iterdir())
    return how, said[:2000]


def _is_plain(folder: Path) -> bool:
    """Whether everything in the folder is a file that is small enough to be read here."""
    paths = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return all(path.is_file() and path.stat().st_size < 2**24 for path in paths)


def _message(error: Exception) -> str:
    """The error as the command line would print it."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename!r}: {error.strerror}"
    return str(error)


def _work(name: str, files: list[dict[str, bytes]], seed: int, numbers: range, pipe: int) -> None:
    """In the child process: the cases of these numbers, one line each before and after."""
    import resource

    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place, os.fdopen(pipe, "w") as out:
        for variant, sound in enumerate(files):  # what is imported at first use is not of a case
            print(json.dumps([numbers[0]]), file=out, flush=True)  # it is alive
            with suppress(ValueError):  # some are made to be refused
                read_sound(TARGETS[name], sound, Path(place) / f"sound-{variant}")
        limit = _memory("VmSize") + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            print(json.dumps([number]), file=out, flush=True)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins with what there is now
            before = _memory("VmRSS")
            how, said = run_case(name, files, seed, number, Path(place) / "case", watch)
            peak = _memory("VmHWM") - before
            print(json.dumps([number, how, said, peak]), file=out, flush=True)


def _memory(field: str) -> int:
    """Bytes of this process: VmSize or VmRSS now, VmHWM at its peak."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))


def _lines(pipe: int, child: int) -> Any:
    """Yields the lines that the child writes until it ends. A child that stays silent is killed."""
    rest = b""
    while True:
        if not select.select([pipe], [], [], _SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
            yield None
            return
        part = os.read(pipe, 2**16)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield json.loads(line)


def fuzz(
    name: str, files: list[dict[str, bytes]], seed: int, numbers: range, keep: Path
) -> tuple[Counter[str], int]:
    """Runs cases in child processes, a new one after each that dies; prints and keeps findings.

    Returns:
        How many ended how, and the most bytes of memory that one has added.
    """
    counts, most = Counter[str](), 0
    while numbers:
        pipe, end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(pipe)
            try:
                _work(name, files, seed, numbers, end)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(end)
        number, hung, finished = numbers[0], False, False
        for line in _lines(pipe, child):
            if line is None:
                hung = True
            elif len(line) == 1:
                number, finished = line[0], False
            else:
                finished = True
                _, how, said, peak = line
                counts[how] += 1
                most = max(most, peak)
                if how not in ("read", "refused"):
                    _report(name, seed, number, how, said, files, keep)
        os.close(pipe)
        _, status = os.waitpid(child, 0)
        if not finished:
            how = "hung" if hung else "crashed"
            counts[how] += 1
            _report(name, seed, number, how, f"status {status}", files, keep)
        numbers = numbers[numbers.index(number) + 1 :]
    return counts, most


def _report(
    name: str,
    seed: int,
    number: int,
    how: str,
    said: str,
    files: list[dict[str, bytes]],
    keep: Path,
) -> None:
    print(f"  {name} --seed {seed} --case {number}: {how}: {said}", flush=True)
    random = Random(f"{name}/{seed}/{number}")
    folder = keep / f"{name}-{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        write_files(folder, damage(random, random.choice(files)), Path("../secret"))
    except OSError as error:
        print(f"  not kept: {error}")


def main() -> int:
    """Runs what the command line names. Returns 1 if there are findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help=", ".join(TARGETS))
    parser.add_argument("--files", type=int, default=1000, help="cases of each target")
    parser.add_argument("--minutes", type=float, help="continue with further cases for this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one case here")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    if options.files < 1:
        parser.error(f"--files: expected 1 or more, got {options.files}")
    if unknown := sorted(set(options.targets) - TARGETS.keys()):
        parser.error(f"expected targets of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    if options.case is not None and len(options.targets) != 1:
        parser.error("--case: expected one target")
    # OpenMP's threads do not survive a fork: a child that waits for them would seem to hang.
    torch.set_num_threads(1)
    names = options.targets or list(TARGETS)
    with tempfile.TemporaryDirectory(prefix="fuzz-sound-") as sound:
        files = {name: sound_files(TARGETS[name], Path(sound) / name) for name in names}
        if options.case is not None:
            place = Path(sound) / "case"
            how, said = run_case(
                names[0], files[names[0]], options.seed, options.case, place, Watch()
            )
            print(f"{how}: {said}")
            return 0
        totals: Counter[str] = Counter()
        end = time.monotonic() + 60 * (options.minutes or 0)
        first = 0
        while not first or time.monotonic() < end:
            for name in names:
                begun = time.monotonic()
                numbers = range(first, first + options.files)
                counts, most = fuzz(name, files[name], options.seed, numbers, options.keep)
                told = ", ".join(f"{how} {count}" for how, count in sorted(counts.items()))
                took = f"{time.monotonic() - begun:.0f} s, at most {most / 2**20:.0f} MiB more"
                print(f"{name}: {told} in {took}", flush=True)
                totals += counts
            first += options.files
    found = totals.total() - totals["read"] - totals["refused"]
    read, refused = totals["read"], totals["refused"]
    print(f"{totals.total()} files: {read} read, {refused} refused, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
