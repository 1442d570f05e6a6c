"""The pytest-benchmark suite: every workload × contender. `pytest benchmarks/ --benchmark-only`.

Different tests run minutes apart; for ratios use `compare.py`, which runs contenders in turns. Both
have the same threads by default and keep freed memory. None of a workload's contenders is timed if
an operator of ours fails its conformance tests.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from shared import conformance, measure
from shared.workloads import WORKLOADS, Workload


@lru_cache(maxsize=1)
def workload_of(name: str) -> Workload:
    """Its inputs, which its contenders share, are kept until another one is asked for."""
    return WORKLOADS[name]()


@pytest.fixture(scope="module")
def conditions():
    before = torch.get_num_threads()
    measure.set_conditions(measure.THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(disable_gc=True)
@pytest.mark.usefixtures("conditions")
@pytest.mark.parametrize(
    ("name", "contender"),
    [(name, contender) for name in WORKLOADS for contender in workload_of(name).contenders],
)
def test_speed(benchmark, name, contender):
    workload = workload_of(name)
    if failing := conformance.red(workload.operators):
        pytest.fail(f"{workload.name}: left out, the tests of {', '.join(failing)} fail")
    try:
        run = workload.contenders[contender]()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: pip install '.[bench]'")
    run()
    benchmark.group = workload.name
    benchmark.extra_info.update(flops=workload.flops, bytes=workload.bytes)
    benchmark(run)
