"""`benchmarks/shared/measure.py`: how contenders are timed."""

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
    measure, device = measuring("shared.measure"), Device(seconds)
    times = measure.interleave({"ours": device.launch}, 3, device.clock)["ours"]
    assert times == pytest.approx([seconds] * 3)
    assert device.calls == 2 + 3 * calls


@pytest.fixture
def measure(measuring, monkeypatch):
    """The module, whose turns are one call each and follow at once."""
    module = measuring("shared.measure")
    monkeypatch.setattr(module, "SHORTEST", 0)
    monkeypatch.setattr(module, "SETTLE", 0)
    return module


def test_the_first_turn_of_a_round_goes_round(measure):
    turns = []
    runs = {name: lambda name=name: turns.append(name) for name in "abc"}
    measure.interleave(runs, 4, lambda: 0.0)
    warm_up = 2 * len(runs)
    assert "".join(turns[warm_up:]) == "abc" + "bca" + "cab" + "abc"


def test_each_contender_has_the_seconds_of_its_own_turns(measure):
    """The first one slows down from call to call; it has been called twice before its turns."""
    calls, now = [0], [0.0]

    def slowing():
        calls[0] += 1
        now[0] += calls[0]

    def steady():
        now[0] += 0.5

    times = measure.interleave({"slowing": slowing, "steady": steady}, 3, lambda: now[0])
    assert times == {"slowing": [3, 4, 5], "steady": [0.5, 0.5, 0.5]}


def test_a_ratio_is_of_medians_and_its_spread_is_within_rounds(measure):
    slower, faster = [2.0, 8.0, 30.0, 4.0, 5.0, 7.0], [1.0, 2.0, 5.0, 0.5, 1.0, 1.0]
    middle, low, high = measure.ratio(slower, faster)
    assert middle == 6.0  # 6 to 1
    assert (low, high) == (4.0, 7.0)  # of 2, 4, 5, 6, 7 and 8


@pytest.fixture
def row_of(measure):
    """The row of a contender with these times, arithmetic and traffic: the machine multiplies at
    100 GFLOP/s, and copies at 10 GB/s."""
    ceilings = {
        "ceiling:matmul": [2 * measure.MATMUL_SIZE**3 / 100e9] * 3,
        "ceiling:copy": [2 * measure.COPY_BYTES / 10e9] * 3,
    }
    words = {"op": "an_op", "owner": "cpu", "mode": "a_mode", "shape": "1x1x1", "clock": "wall"}

    def make(times, flops=0, traffic=0):
        seconds = {**ceilings, "ours": times}
        numbers = {"flops": flops, "traffic": traffic, "peak_mib": 0.0}
        return measure.make_row("ours", seconds, **words, **numbers)

    return make


def test_a_row_has_the_median_and_the_20th_and_80th_percentile_in_ms(row_of):
    row = row_of([0.006, 0.001, 0.002, 0.003, 0.050, 0.004])
    assert (row.median_ms, row.p20_ms, row.p80_ms) == pytest.approx((3.5, 2.0, 6.0))
    assert row.rounds == 6


def test_a_product_and_a_copy_of_a_second_have_their_sizes_as_rates(measure):
    """A product of n×n matrices takes 2n³ operations; a copy reads and writes its bytes."""
    assert measure.matmul_rate([1.0]) == pytest.approx(2 * 1536**3 / 1e9)
    assert measure.copy_rate([1.0]) == pytest.approx(2 * 2**26 / 1e9)


@pytest.mark.parametrize(
    ("flops", "traffic", "share"), [(30e9, 8e9, 0.8), (90e9, 2e9, 0.9)], ids=["memory", "product"]
)
def test_the_share_is_of_the_ceiling_that_is_nearer(row_of, flops, traffic, share):
    assert row_of([1.0], flops, traffic).share_of_ceiling == pytest.approx(share)
