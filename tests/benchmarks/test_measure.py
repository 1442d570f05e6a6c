"""`benchmarks/measure.py`: how contenders are timed."""

from __future__ import annotations

import pytest


class Device:
    """Runs calls after they were launched, which takes no time: its clock waits for them."""

    def __init__(self, seconds):
        self.seconds, self.now, self.launched, self.calls = seconds, 0.0, 0, 0

    def launch(self):
        self.launched += 1
        self.calls += 1

    def clock(self):
        self.now += self.launched * self.seconds
        self.launched = 0
        return self.now


@pytest.mark.parametrize(("seconds", "calls"), [(1e-2, 1), (2.4e-4, 8)])
def test_calls_of_a_round_are_counted_by_the_clock_that_times_it(measuring, seconds, calls):
    measure, device = measuring("measure"), Device(seconds)
    times = measure.interleave({"ours": device.launch}, 3, device.clock)["ours"]
    assert times == pytest.approx([seconds] * 3)
    assert device.calls == 2 + 3 * calls
