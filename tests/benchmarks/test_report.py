"""`benchmarks/report.py`: a picture shows rows that can be compared, and says what they are of."""

from __future__ import annotations

import csv

import pytest

ROW = {
    "mode": "search",
    "shape": "64x8x4",
    "contender": "ours",
    "owner": "cpu:avx2",
    "median_ms": "2",
    "p20_ms": "1",
    "p80_ms": "9",
    "gb_per_s": "2",
    "gflop_per_s": "100",
    "matmul_gflop_per_s": "400",
    "copy_gb_per_s": "20",
    "device": "A Processor, 2 cores, avx2",
    "threads": "2",
    "versions": "torch 2.11",
    "commit": "aaaaaaa",
    "date": "2026-01-01",
    "clock": "wall",
}


@pytest.fixture
def pictures(script, monkeypatch, tmp_path):
    """Draws a table of rows, each the changes to `ROW`; returns the figures by name."""
    report = script("report")
    drawn = {}
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.update({path.stem: figure}))

    def draw(*changes):
        path = tmp_path / "a.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROW)
            writer.writeheader()
            writer.writerows(ROW | change for change in changes)
        report.draw(path)
        return drawn

    yield draw
    for figure in drawn.values():
        report.plt.close(figure)


def title_of(figure):
    return figure.get_suptitle() or figure.axes[0].get_title()


def bars_of(figure):
    return [bar.get_width() for axis in figure.axes for bar in axis.patches]


def test_other_threads_and_clocks_get_pictures_of_their_own(pictures):
    drawn = pictures(
        {"median_ms": "2"},
        {"median_ms": "5", "threads": "1", "clock": "cpu"},
        {"median_ms": "6", "threads": "1"},
    )
    assert {name: bars_of(figure) for name, figure in drawn.items() if "times" in name} == {
        "a-2-threads-wall-clock-times": [2],
        "a-1-thread-cpu-clock-times": [5],
        "a-1-thread-wall-clock-times": [6],
    }


def test_a_later_row_replaces_one_of_its_conditions(pictures):
    drawn = pictures({"median_ms": "2"}, {"median_ms": "5", "threads": "1"}, {"median_ms": "3"})
    assert bars_of(drawn["a-2-threads-wall-clock-times"]) == [3]
    assert bars_of(drawn["a-1-thread-wall-clock-times"]) == [5]


def test_a_caption_is_true_of_every_row(pictures):
    drawn = pictures(
        {},
        {"mode": "step", "commit": "bbbbbbb", "date": "2026-01-03", "versions": "torch 2.13"},
        {"mode": "cost_n", "commit": "ccccccc"},
    )
    both = (
        "A Processor, 2 cores, avx2, 2 threads, wall clock, commits aaaaaaa, bbbbbbb, "
        "2026-01-01 to 2026-01-03\ntorch 2.11\ntorch 2.13"
    )
    assert title_of(drawn["a-2-threads-wall-clock-times"]) == both
    assert title_of(drawn["a-2-threads-wall-clock-roofline"]) == both
    assert "commit ccccccc, 2026-01-01\n" in title_of(drawn["a-2-threads-wall-clock-costs"])


def test_a_roofline_joins_each_point_to_the_ceiling_of_its_own_row(pictures):
    drawn = pictures(
        {},
        {"mode": "step", "matmul_gflop_per_s": "300"},
        {"mode": "ema", "gflop_per_s": "1", "copy_gb_per_s": "10"},
    )
    axis = drawn["a-2-threads-wall-clock-roofline"].axes[0]
    lines = [tuple(map(tuple, line.get_data())) for line in axis.lines]
    # 50 flop per byte, under the product's ceiling, twice; and half a flop, under the copy's.
    for joined in (((50, 50), (100, 400)), ((50, 50), (100, 300)), ((0.5, 0.5), (1, 5))):
        assert joined in lines
    label = axis.get_legend().get_texts()[0].get_text()
    assert label == "float32 product 300 to 400 GFLOP/s, copy 10 to 20 GB/s"
