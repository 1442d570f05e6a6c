"""For all tests: which of them `pytest` runs, how it ends, one thread, a disk that becomes full.

`pytest` runs what a user of this machine wants to know, in a few minutes: all tests but `FULL`.
`pytest --full` runs the others too, and so does naming a file or a folder: `pytest tests/ops`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# This is set before torch is loaded, and for the processes that tests start. Tests compute so
# little that a second thread would only wait, and on a busy machine for long. Tests of threads ask
# for more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from helpers.compare import RecordedOperators, simd_levels
from hypothesis import HealthCheck, settings

from vqvae2_fast.cli import main
from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import ModuleType


TESTS = Path(__file__).parent

# `pytest` runs every test but these, each once for each value of each of its parameters, and SIMD
# levels between the lowest and the highest not at all. A pattern is of a file, or of a file and the
# name of a test. What it matches has the mark `full`.
FULL = {
    "scripts, benchmarks, pages, notebooks, the layout of the project": [
        "benchmarks/*",
        "docs/*",
        "tools/*",
        "test_defaults.py",
        "test_notebook_tables.py",
        "test_package_files.py",
        "test_rooms.py",
        "serve/page/*",
    ],
    "graphs, which take seconds to compile": ["*compile*", "*_graph*", "*export*"],
    "damaged and random input": ["*damage*", "*fuzz*", "*random_priors*", "sampling/test_bounds*"],
    "threads, processes, signals and full disks": [
        "*thread*",
        "*distributed*",
        "*process*",
        "*ranks*",
        "*sharded*",
        "*disk*",
        "commands/test_serve.py",
        "machine/*",
        "test_command.py",
    ],
    "operators: what is the same for all of their inputs": [
        "ops/test_conformance.py::test_opcheck",
        "ops/test_conformance.py::*_strided_*",
        "ops/test_conformance.py::*_repeat_*",
        "ops/test_conformance.py::*_row_*",
        "ops/test_conformance.py::*_strict_*",
        "ops/test_conformance.py::*_owner_*",
        "ops/test_derivatives.py",
    ],
    "kernels that need a GPU, an interpreter or an emulation": [
        "ops/test_triton*",
        "sampling/test_auto_engine.py",
        "sampling/test_cuda_*",
        "sampling/test_stage_times.py",
    ],
    "what takes seconds": [
        "commands/test_demo.py::test_a_stopped_*",
        "commands/test_evaluate.py",
        "commands/test_training_plan.py",
        "commands/test_tune.py",
        "data/test_avatars.py",
        "data/test_small_avatars.py::test_the_sheet_*",
        "metrics/test_distances.py::test_kernel_*",
        "metrics/test_distances.py::test_neighbour_*",
        "ops/test_nearest_code.py::test_many_codes",
        "sampling/test_rows_at_once.py",
        "sampling/test_w8a8.py::test_by_default_*",
        "sampling/test_weight_changes.py::test_each_draw_*",
        "test_pipeline_training.py::test_a_finished_*",
        "test_pipeline_training.py::test_an_interrupted_*",
        "test_pipeline_training.py::test_images_*",
    ],
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run all tests, not only those that a user needs"
    )
    parser.addoption("--quick", action="store_true", help="of named files too, only those")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    named = {Path(argument.split("::")[0]).resolve() for argument in config.args}
    if some := not named <= {TESTS, TESTS.parent}:
        config.option.full |= not config.option.quick
    if some or hasattr(config, "workerinput"):
        return
    # Processes of pytest-xdist, unless -n says how many. With `-p no:xdist` there is one.
    if getattr(config.option, "numprocesses", 0) is None:
        alone = config.option.usepdb or config.option.collectonly
        config.option.numprocesses = None if alone else min(os.cpu_count() or 1, 4)


def _is_full(name: str) -> bool:
    """Whether `FULL` names a file, as in `ops/test_native.py`, or a test, as in `file.py::test`."""
    return any(fnmatch(name, pattern) for patterns in FULL.values() for pattern in patterns)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files without a quick test, which take longer to import than to deselect."""
    if config.option.full or collection_path.suffix != ".py":
        return None
    return _is_full(collection_path.relative_to(TESTS).as_posix()) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    between, seen = set(simd_levels()[1:-1]), set()
    for item in items:
        test = item.nodeid.removeprefix("tests/").split("[")[0]
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        values = {(test, *each) for each in item.callspec.indices.items()} if parameters else {test}
        level = parameters.get("level")
        is_between = isinstance(level, str) and level in between
        if _is_full(test.split("::")[0]) or _is_full(test) or is_between or values <= seen:
            item.add_marker("full")
        else:
            seen |= values
    if not config.option.full:
        left = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_report_header(config: pytest.Config) -> str:
    which = "all" if config.option.full else "the quick ones; `pytest --full` runs all"
    return f"tests: {which}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which compiled kernels the tests ran, and which this machine cannot run."""
    if _native.module is None:
        line = "compiled kernels: none, operators ran on their references"
    else:
        build = _native.build_info()
        missing = ", ".join(build["missing_simd_levels"]) or "none"
        line = f"SIMD levels: {', '.join(build['simd_levels'])}; not on this CPU: {missing}"
    terminalreporter.write_line(line)


# For `--hypothesis-profile=thorough`.
settings.register_profile("thorough", max_examples=10_000, suppress_health_check=list(HealthCheck))


@dataclass
class SmallDisk:
    """Room for 16 MiB below `folder`; after `fill(n)` a write of more than about n bytes fails.

    The bound is on the disk (in pages of 4 KiB) or on each file, whichever this machine can set; a
    new file of n + 4097 bytes fits under neither.
    """

    folder: Path
    fill: Callable[[int], None]
    clear: Callable[[], None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of benchmarks/ by its name, or a module of its `shared`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def operator_calls() -> Iterator[list[str]]:
    """Names of the opaque operators that run from here on."""
    with RecordedOperators() as recorded:
        yield recorded.names


@pytest.fixture
def with_threads() -> Iterator[Callable[[int, Callable[[], object]], object]]:
    """Calls a function while torch has this number of threads."""
    threads = torch.get_num_threads()

    def call(number: int, function: Callable[[], object]) -> object:
        torch.set_num_threads(number)
        return function()

    yield call
    torch.set_num_threads(threads)


# FE_DOWNWARD, FE_UPWARD and FE_TOWARDZERO of the GNU C library's <fenv.h>, on x86-64.
@pytest.fixture(params=[0x400, 0x800, 0xC00], ids=["down", "up", "to_zero"])
def other_rounding(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the calling thread does not round to nearest."""
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        pytest.skip("modes have other numbers here")
    libm = ctypes.CDLL("libm.so.6")

    @contextmanager
    def rounding() -> Iterator[None]:
        libm.fesetround(request.param)
        try:
            yield
            assert libm.fegetround() == request.param
        finally:
            libm.fesetround(0)

    return rounding


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., None]:
    """Runs a file as a script once for each rank, with the rank as its first argument."""

    def run(script: str, count: int, *arguments: object) -> None:
        # Scripts, too, import tests/helpers.
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path.rstrip(os.pathsep)}
        command = [sys.executable, script]
        started = [
            subprocess.Popen([*command, str(rank), *map(str, arguments)], env=environment)
            for rank in range(count)
        ]
        try:
            # Seconds, where ten would do: a hang is a failure, but a busy machine is not.
            codes = [process.wait(timeout=300) for process in started]
        finally:
            for process in started:
                process.kill()
        assert codes == [0] * count

    return run


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command line says of arguments, a list or one line, that it must refuse, ending
    with a code."""

    def run(arguments: list[str] | str, code: int = 2) -> str:
        assert main(arguments.split() if isinstance(arguments, str) else arguments) == code
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return text

    return run


@pytest.fixture(params=["tmpfs", "limit"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limit":
        yield from _limited_files(folder)
    else:
        yield from _tmpfs(folder)


def _tmpfs(folder: Path) -> Iterator[SmallDisk]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root on Linux")
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.strip()}")
    filler = folder / ".filler"

    def fill(leave: int) -> None:
        filler.unlink(missing_ok=True)
        free = os.statvfs(folder)
        with filler.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave)

    try:
        yield SmallDisk(folder, fill, lambda: filler.unlink(missing_ok=True))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Lifts a limit of files before pytest reports the test, perhaps to a longer file."""
    try:
        return (yield)
    finally:
        if "small_disk" in item.fixturenames:
            item.funcargs["small_disk"].clear()


def _limited_files(folder: Path) -> Iterator[SmallDisk]:
    resource = pytest.importorskip("resource", reason="limits of files need Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    try:
        yield SmallDisk(folder, limit, lambda: limit(soft))
    finally:
        limit(soft)
