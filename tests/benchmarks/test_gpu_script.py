"""`benchmarks/gpu.sh` on a machine whose tools are fakes: its first page and its archive.

`python` on the path is a script: it runs the files that need no GPU with the real Python, and in
the place of every measurement it does what the test planned, which is to leave a table, to fail, or
to hang. Only torch's version and whether it sees a GPU are asked of torch, which is a fake as well.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gpu.sh needs GNU's tools")

SAMPLER = [
    {"engine": "cuda", "batch": 1, "median_s": 0.25, "images_per_s": 4.0, "sample_0": "same"},
]
OPERATORS = [
    {
        "mode": "search",
        "shape": "524288x512x64",
        "contender": "ours",
        "median_ms": 0.3,
        "gb_per_s": 500.0,
        "copy_gb_per_s": 2000.0,
    }
]
STAGE_TIMES = {"device": "NVIDIA H100 80GB HBM3", "cases": []}
# Arguments are those of a real call; a plan is a file named after the script, with an action.
PYTHON = """#!/usr/bin/env bash
fakes={fakes}
case "$*" in
  *gpu_machine.py\\ driver | *gpu_claims.py*)
    PYTHONPATH=$fakes/modules exec {python} "$@" ;;
  *gpu_machine.py\\ package) echo "vqvae2_fast 1.2.3 in /site." && exit 0 ;;
  *--json*claims-*) name=$(basename "${{*#*--json }}") && name=${{name%%.json*}} && echo "$*" ;;
  *--stage-times*) name=stage_times && echo "$*" ;;
  *-m\\ cuda*) echo "$*" && exit 0 ;;
  *) exit 0 ;;
esac
while [ "$1" != --json ] && [ "$1" != --out ]; do shift; done
[ ! -e "$fakes/$name.json" ] || cp "$fakes/$name.json" "$2"
[ ! -e "$fakes/$name.fails" ] || {{ echo "$name broke"; exit 7; }}
[ ! -e "$fakes/$name.hangs" ] || {{ echo "$name hangs"; sleep 300; }}
"""
SMI = """#!/bin/sh
case "$1" in
  --query-gpu=name,driver_version) echo 'NVIDIA H100 80GB HBM3, {driver}' ;;
  *) echo '| NVIDIA-SMI {driver}    Driver Version: {driver}    CUDA Version: {cuda}     |' ;;
esac
"""
NVCC = """#!/bin/bash
echo 'Cuda compilation tools, release 13.0, V13.0.88'
case "$*" in *VQ_STAGE_TIMES*) [ ! -e {fakes}/library.fails ] || exit 2 ;; esac
[ "$1" = --version ] || install -m 755 /dev/null "${{@: -1}}"
"""
# Given something to say of the tests, it says that and then outlives its time.
SANITIZER = """#!/bin/sh
case "$*" in *test_cuda.py*) ;; *) exit 0 ;; esac
[ ! -e {fakes}/sanitizer.txt ] || {{ cat {fakes}/sanitizer.txt; sleep 300; }}
"""


class Machine:
    """A folder of fakes, in which gpu.sh runs."""

    def __init__(self, folder: Path, driver: str, cuda: str) -> None:
        self.fakes, self.results = folder / "fakes", folder / "results"
        torch = self.fakes / "modules" / "torch"
        for path in (torch, self.fakes / "bin", self.results):
            path.mkdir(parents=True)
        (torch / "version.py").write_text("__version__ = '2.15.0+cu130'\ncuda = '13.0'\n")
        (torch / "__init__.py").write_text(
            "class cuda:\n    is_available = staticmethod(lambda: True)\n"
        )
        python = PYTHON.format(fakes=self.fakes, python=sys.executable)
        tools = {
            "python": python,
            "nvidia-smi": SMI.format(driver=driver, cuda=cuda),
            "nvcc": NVCC.format(fakes=self.fakes),
            "c++filt": "#!/bin/sh\n",
            "nsys": "#!/bin/sh\n",
            "cuobjdump": "#!/bin/sh\n",
            "compute-sanitizer": SANITIZER.format(fakes=self.fakes),
        }
        for name, text in tools.items():
            path = self.fakes / "bin" / name
            path.write_text(text)
            path.chmod(0o755)
        self.plan("claims-sampler.json", SAMPLER)
        self.plan("claims-operators.json", OPERATORS)
        self.plan("stage_times.json", STAGE_TIMES)

    def plan(self, name: str, value: object = None) -> None:
        (self.fakes / name).write_text(json.dumps(value))

    def start(self, *options: str) -> subprocess.Popen[str]:
        path = f"{self.fakes / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(SCRIPT), *options],
            cwd=self.results,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def archive(self) -> dict[str, str]:
        """The archive's files without their folder."""
        (path,) = self.results.glob("gpu-results-*.tar.gz")
        with tarfile.open(path) as archive:
            return {
                member.name.partition("/")[2]: archive.extractfile(member)
                .read()
                .decode(errors="replace")
                for member in archive
                if member.isfile()
            }


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path, "580.65.06", "13.0")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Exit code, output and archive of a run in which nothing fails."""
    machine = Machine(tmp_path_factory.mktemp("machine"), "580.65.06", "13.0")
    return *machine.run("--seconds", "60"), machine.archive()


def claim(page: str, name: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {name}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def result_of(page: str, part: str) -> str:
    return claim(page, f"{part} |")[1]


def test_a_driver_that_is_too_old_is_told_first(tmp_path):
    old = Machine(tmp_path, "550.54.15", "12.4")
    code, output = old.run()
    page = old.archive()["summary.md"]
    sentence = (
        "NVIDIA H100 80GB HBM3, driver 550.54.15, which supports CUDA 12.4: torch 2.15.0+cu130 "
        "needs CUDA 13.0, so nothing can be measured: install driver 580 or later, or a build for "
        "CUDA 12."
    )
    assert code == 1
    assert output.splitlines()[1] == sentence
    assert sentence in page
    assert "=== claims-sampler" not in output
    image = claim(page, "a 256×256 image, batch 1, engine `cuda` (float32)")
    assert image[1:3] == ["0.076 s", "not measured"]


def test_the_page_has_claims_expected_and_measured(undisturbed):
    code, output, files = undisturbed
    page = files["summary.md"]
    assert code == 0, output
    image = claim(page, "a 256×256 image, batch 1, engine `cuda` (float32)")
    assert image[1:4] == ["0.076 s", "0.25 s", "3.29"]
    assert claim(page, "search, over its memory floor")[2] == "4 ×"
    assert page in output


def memcheck_that_is_stopped(machine, *lines):
    """What the page and the log say of a sanitizer that prints these lines and does not end."""
    text = "".join(f"========= {line}\n" for line in ("COMPUTE-SANITIZER", *lines))
    (machine.fakes / "sanitizer.txt").write_text(text)
    machine.run("--seconds", "60", "--memcheck-seconds", "1")
    files = machine.archive()
    return result_of(files["summary.md"], "memcheck"), files["memcheck.log"]


def test_the_expected_figures_are_those_of_the_readme(script):
    claims = script("gpu_claims")
    text = (ROOT / claims.SAMPLER_README).read_text(encoding="utf-8")
    for (engine, batch), seconds in claims.EXPECTED_S.items():
        assert f"| `{engine}` | {batch} | {seconds:.3f} |" in text


def test_errors_of_a_memcheck_that_is_stopped_count(machine):
    errors = (
        "Invalid __global__ write of size 4 bytes",
        'Program hit cudaErrorLaunchFailure (error 719) due to "unspecified launch failure"',
    )
    result, log = memcheck_that_is_stopped(machine, errors[0], "    at kernel+0x70", errors[1])
    assert result == "failed, exit code 9"
    assert log.endswith(
        "compute-sanitizer: errors in 1 s, stopped there:\n"
        f"========= {errors[0]}\n========= {errors[1]}\n"
    )


def test_a_part_that_fails_does_not_end_it(machine):
    machine.plan("claims-sampler.fails")
    code, output = machine.run("--seconds", "60")
    files = machine.archive()
    assert code == 1
    assert output.splitlines()[-1] == "failed: claims-sampler"
    assert files["claims-sampler.log"].endswith("claims-sampler broke\n")
    assert result_of(files["summary.md"], "claims-sampler") == "failed, exit code 7"
    assert result_of(files["summary.md"], "claims-operators") == "passed"


def test_a_part_that_hangs_is_cut_and_its_figures_are_kept(machine):
    machine.plan("claims-sampler.hangs")
    code, _ = machine.run("--seconds", "6")
    page = machine.archive()["summary.md"]
    assert code == 1
    assert result_of(page, "claims-sampler").startswith("cut after ")
    assert result_of(page, "claims-operators") == "left out, the time is over"
    assert claim(page, "a 256×256 image, batch 1, engine `cuda` (float32)")[2] == "0.25 s"


def test_a_signal_leaves_an_archive(machine):
    machine.plan("claims-sampler.hangs")
    process = machine.start("--seconds", "100")
    for line in process.stdout:
        if line == "claims-sampler hangs\n":
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    page = machine.archive()["summary.md"]
    assert result_of(page, "claims-sampler").startswith("cut after ")
    assert result_of(page, "claims-operators") == "left out, the time is over"


def test_a_wheel_is_installed_and_named(machine, tmp_path):
    wheel = tmp_path / "some.whl"
    wheel.touch()
    machine.run("--seconds", "60", "--wheel", str(wheel))
    page = machine.archive()["summary.md"]
    assert result_of(page, "install") == "passed"
    assert f"Package, from {wheel}:" in page
