"""The plot of rejection's trade-off: which panels it has."""

from __future__ import annotations

from typing import Any

import pytest

from vqvae2_fast.metrics.estimates import Estimate
from vqvae2_fast.metrics.results import RejectionPoint
from vqvae2_fast.report import trade_off


def points(*measures: str, only: int) -> list[RejectionPoint]:
    """Three points; the first `only` of them have the measures."""

    def value(at: float) -> Estimate:
        return Estimate(at, at - 0.1, at + 0.1, 100)

    return [
        RejectionPoint(
            share=share,
            images=100,
            accuracy=1 - share / 2,
            least_probability=0.1,
            measures={"net": {name: value(share) for name in measures if number < only}},
            floor={"net": {name: value(0.1) for name in measures}},
        )
        for number, share in enumerate((1.0, 0.5, 0.1))
    ]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Title, curves and range of each panel if the first `only` points have the measures."""

    def draw(*measures: str, only: int = 3) -> list[tuple[str, list[str], tuple[float, float]]]:
        figures = []

        def figure(width: float, height: float) -> Any:
            figures.append(new_figure(width, height))
            return figures[-1]

        monkeypatch.setattr(trade_off, "new_figure", figure)
        trade_off.plot_trade_off(tmp_path / "plot.png", points(*measures, only=only))
        return [
            (
                axis.get_title(),
                [text.get_text() for text in axis.get_legend().get_texts()],
                axis.get_xlim(),
            )
            for axis in figures[-1].axes
        ]

    new_figure = trade_off.new_figure
    return draw


def test_accuracy_comes_first_and_each_measure_has_its_panel(drawn):
    found = drawn("frechet", "kernel", "score", "precision", "recall")
    assert [title for title, *_ in found] == [
        "share in its class by the classifier",
        "FD-net",
        "KD-net",
        "score-net",
        "precision and recall, net",
    ]
    assert found[0][1] == ["accuracy"]
    assert [label for label in found[4][1] if "real" not in label] == ["precision", "recall"]


def test_what_was_not_measured_has_no_panel(drawn):
    found = drawn("kernel", "recall")
    assert [title for title, *_ in found] == [
        "share in its class by the classifier",
        "KD-net",
        "recall, net",
    ]


def test_panels_have_one_range_whatever_was_measured(drawn):
    ranges = [reach for *_, reach in drawn("frechet", only=1)]
    assert ranges[0] == ranges[1]
    assert ranges[0][0] > 1 > 0.1 > ranges[0][1]
