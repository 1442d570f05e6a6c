"""Times of the stages of engine `cuda`'s kernel. Those here are made up; `sampler_test` checks
those that the kernel notes."""

import numpy as np
import pytest


def test_intervals_of_a_row(script):
    # Two steps, three blocks, two stages; nanoseconds from a start that floats could not hold.
    start = 1_764_000_000_000_000_000
    times = np.zeros((2, 3, 2, 3), dtype=np.int64)
    for t in range(2):
        origin = start + 10_000 * t
        times[t, 0, 0] = (origin + 1000, origin + 2000, origin + 2600)
        times[t, 1, 0] = (origin + 1000, origin + 1500, origin + 2200)
        for block, work in ((0, 700), (1, 900), (2, 800)):
            ready = origin + 3100
            times[t, block, 1] = (ready, ready + work, ready + work + 550)
    stages = [
        {"wait_stage": 1, "wait_before": 1},
        {"wait_stage": 0, "wait_before": 0},
    ]
    first, second = script("shared.stage_times").intervals(times, stages)
    # Of the first stage only the second step waits, for what was told at 3100 + 900 + 550.
    assert first == pytest.approx(
        {"handover": 11000e-9 - 4550e-9, "work": 1000e-9, "telling": 650e-9}, abs=1e-12
    )
    assert second == pytest.approx(
        {"handover": 500e-9, "work": 900e-9, "telling": 550e-9}, abs=1e-12
    )


def test_stages_are_printed_in_microseconds(script):
    module = script("shared.stage_times")
    (stage,) = module.table("name;wait_stage;wait_before\nquery, key;4;1\n")
    assert stage == {"name": "query, key", "wait_stage": 4, "wait_before": 1}
    head, row = module.lines("top", [stage | {"work": 1.5e-6, "telling": 4e-7}])
    assert head.split() == ["top", "handover", "work", "telling", "us"]
    assert row.split() == ["query,", "key", "1.50", "0.40"]
