"""The pytest-benchmark suite: every workload × contender. `pytest benchmarks/ --benchmark-only`.

Different tests run minutes apart; for ratios use `compare.py`, which runs contenders in turns. None
of a workload's contenders is timed if an operator of ours fails its conformance tests.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import conformance
from workloads import WORKLOADS, Workload


@lru_cache(maxsize=1)
def workload_of(name: str) -> Workload:
    return WORKLOADS[name]()


CONTENDERS = {
    "search": ["ours", "faiss", "lean", "cdist"],
    "codes": ["ours", "faiss"],
    "step": ["ours", "onehot", "lucidrains", "lean", "lean_compiled"],
    "statistics": ["ours", "lean", "onehot"],
    "ema": ["ours", "reference"],
    "residual": ["ours", "lucidrains"],
    "fsq": ["ours", "lucidrains"],
    "lfq": ["ours", "lucidrains"],
    "call": ["ours", "lean"],
    "cost": ["ours", "faiss"],
}


@pytest.mark.parametrize(
    ("name", "contender"),
    [(name, who) for name in WORKLOADS for who in CONTENDERS[name.split("_")[0]]],
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
