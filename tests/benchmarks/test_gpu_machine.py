"""What `benchmarks/gpu_machine.py` says of a driver, and the occupancy that is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc/cuda"


@pytest.fixture
def judge(script):
    """The sentence on a driver's CUDA, torch's and nvcc's; and whether anything can be measured."""
    machine = script("gpu_machine")

    def told(driver, torch, nvcc, hip=False):
        return machine.judge(
            driver and machine.Driver("H100", "550.54", driver),
            machine.Torch("2.15", torch, hip),
            nvcc,
        )

    return told


def test_a_driver_of_the_same_major_version_runs_all(judge):
    sentence, measurable = judge((13, 0), (13, 2), (13, 1))
    assert measurable
    assert sentence == (
        "H100, driver 550.54, which supports CUDA 13.0: torch 2.15 needs CUDA 13.2 and runs; what "
        "nvcc builds needs CUDA 13.1 and runs."
    )


def test_kernels_that_cannot_run_are_told_with_what_is_used_instead(judge):
    sentence, measurable = judge((12, 4), (12, 6), (13, 0))
    assert measurable
    assert sentence.endswith(
        "what nvcc builds needs CUDA 13.0 and does not run, so engine eager and the Triton kernels "
        "are used in place of kernels that it builds: install driver 580 or later, or a build for "
        "CUDA 12."
    )


USAGE = """
arch = {architecture}
Resource usage:
 Common:
  GLOBAL:0
 Function void vqvae2_fast::cuda::sampler::{kernel}<float, false>(int):
  REG:{registers} STACK:0 SHARED:{shared} LOCAL:0 CONSTANT[0]:432 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@pytest.mark.parametrize(
    ("kernel", "architecture", "registers", "shared", "expected"),
    [
        pytest.param("row_phase_kernel", "sm_80", 168, 0, 3, id="registers: 12 warps of 5,376"),
        pytest.param("row_phase_kernel", "sm_90a", 32, 60 << 10, 3, id="shared: 228 over 60 KiB"),
        pytest.param("row_phase_kernel", "sm_80", 32, 54 << 10, 2, id="shared: 164 over 55 KiB"),
        pytest.param("stem_row_kernel", "sm_100", 32, 0, 8, id="64 warps"),
        pytest.param("pixel_phase_kernel", "sm_90a", 32, 0, 1, id="alone by its launch"),
        pytest.param("new_kernel", "sm_90a", 32, 0, "", id="a kernel not known"),
        pytest.param("stem_row_kernel", "sm_75", 32, 0, "", id="a card not known"),
    ],
)
def test_blocks_of_a_multiprocessor(script, kernel, architecture, registers, shared, expected):
    occupancy = script("gpu_occupancy")
    text = USAGE.format(
        kernel=kernel, architecture=architecture, registers=registers, shared=shared
    )
    (found,) = occupancy.parse(text.splitlines())
    assert occupancy.row(found)["blocks_per_multiprocessor"] == expected


def test_threads_are_those_of_the_sources(script):
    source = "\n".join(path.read_text() for path in sorted(CSRC.rglob("*.cu*")))
    constants = {
        "pixel_phase_kernel": "kMaxThreads",
        "row_phase_kernel": "kRowThreads",
        "stem_row_kernel": "kStemThreads",
        "gumbel_noise_kernel": "kThreads",
    }
    found = {
        kernel: int(re.search(rf"constexpr int {name} = (\d+);", source)[1])
        for kernel, name in constants.items()
    }
    launches = script("gpu_occupancy").LAUNCHES
    assert {kernel: threads for kernel, (threads, _) in launches.items()} == found
