"""The table of measures: what one row of it suffices for, and what it says about each measure."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2_fast.metrics import compare_sets, distances
from vqvae2_fast.metrics.distances import (
    MEASURES,
    PAIRS,
    Measure,
    compare_all,
    labels_in,
    rejection_curve,
)
from vqvae2_fast.metrics.estimates import Estimate
from vqvae2_fast.metrics.features import FeatureSet
from vqvae2_fast.metrics.reconstruction import Reconstruction
from vqvae2_fast.metrics.results import Evaluation, LevelCost, Rejection
from vqvae2_fast.report import evaluation, trade_off
from vqvae2_fast.report.evaluation import evaluation_lines, write_evaluation


def features(count: int, seed: int) -> FeatureSet:
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return FeatureSet(
        rows.numpy(), rows[:, :2].numpy(), rows.log_softmax(1).numpy(), torch.zeros(count)
    )


def sets(count: int) -> dict[str, FeatureSet]:
    names = ("reference", "other", "reconstructed", "sampled")
    return {name: features(count, seed) for seed, name in enumerate(names)}


@pytest.fixture
def one_more(monkeypatch):
    """A measure that a contributor would add."""
    own = Measure(
        "gap",
        "gap-{network}",
        "lower",
        lambda real: 150,
        lambda sets: Estimate(0.125, 0.0, 1.0, len(sets.real)),
        panel="gap",
        headline=True,
    )
    for module in (distances, evaluation, trade_off):
        monkeypatch.setattr(module, "MEASURES", (*MEASURES, own))


def test_a_rejection_curve_holds_one_copy_of_rows_at_a_time(monkeypatch):
    """Copies of 50,000 samples would take most of the memory of an evaluation."""
    copies, select = [], FeatureSet.select

    def counted(self, rows):
        assert all(copy() is None for copy in copies)
        copy = select(self, rows)
        copies.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(FeatureSet, "select", counted)
    kept = {share: torch.arange(int(200 * share)) for share in (1.0, 0.75, 0.5)}
    rejection_curve(kept, torch.rand(200), torch.ones(200), {"net": sets(200)})
    assert len(copies) == 3


def test_the_first_images_are_not_copied():
    whole = features(9, 0)
    first = whole.first(4)
    assert len(first) == 4
    for part in ("features", "spatial", "log_probabilities"):
        assert np.shares_memory(getattr(first, part), getattr(whole, part)), part


def test_a_row_of_the_table_is_measured_printed_reported_and_drawn(one_more, tmp_path, monkeypatch):
    own = sets(200)
    found = {"net": compare_all(own, "net")}
    kept = {1.0: torch.arange(200), 0.5: torch.arange(100)}
    points = rejection_curve(kept, torch.rand(200), torch.ones(200), {"net": own})
    assert points[0].measures["net"]["gap"].value == 0.125
    assert "gap" not in points[1].measures["net"]  # too few images
    level = LevelCost(4, 3, 2.0, 1.0, 4.0, 0.5, 0.7, 2.9)
    whole = Evaluation(
        images=7,
        reconstruction=Reconstruction(0.1, 0.025, 16.0),
        levels={"top": level},
        bits_per_image=2.9,
        marginal_bits_per_image=4.0,
        bits_per_dim=0.1,
        codecs={},
        sampled_images=200,
        distances=found,
        rejection=Rejection(points, "the judge itself"),
    )
    assert json.loads(json.dumps(whole.as_json()))["distances"]["net"]["rows"]["floor"]["gap"]
    assert any(
        line.startswith("gap-net of 200 samples: 0.125 ") for line in evaluation_lines(whole)
    )
    pictures = {}
    for name in ("reconstructions", "rate", "best"):
        pictures[name] = tmp_path / f"{name}.png"
        Image.new("L", (1, 1)).save(pictures[name])
    titles = []
    monkeypatch.setattr(trade_off, "_by_share", lambda axis, shares, title: titles.append(title))
    pictures["trade_off"] = tmp_path / "trade_off.png"
    trade_off.plot_trade_off(pictures["trade_off"], points)
    assert "gap-net" in titles
    write_evaluation(tmp_path / "report.html", whole, pictures, title="a")
    text = (tmp_path / "report.html").read_text()
    assert "<th>gap-net ↓</th>" in text
    assert "<th>gap-net</th>" in text  # of rejection


def test_measures_are_left_out_below_their_least_number_of_images():
    few, many = features(120, 0), features(200, 1)
    left_out = {"kernel"}  # 200; the others need 100
    assert set(compare_sets(few, many)) == {measure.name for measure in MEASURES} - left_out
    assert compare_all(sets(120), "net").left_out == {"kernel": 200}
    assert compare_sets(features(99, 0), many) == {}


def test_every_pair_is_compared_by_every_measure():
    found = compare_all(sets(200), "net")
    assert set(found.rows) == set(PAIRS)
    assert found.left_out == {}
    direct = compare_sets(features(200, 0), features(200, 3))
    assert found.rows["sampled"] == direct


def test_names_belong_to_inception_alone():
    own = {"frechet": "FID", "spatial": "sFID", "kernel": "KID", "score": "Inception score"}
    assert labels_in("Inception").items() >= own.items()
    others = {"frechet": "FD-net", "spatial": "sFD-net", "kernel": "KD-net", "score": "score-net"}
    assert labels_in("net").items() >= others.items()
    assert not set(labels_in("net").values()) & set(own.values())


def test_neighbours_are_found_once_for_their_four_measures(monkeypatch):
    calls = []
    original = distances.neighbour_measures

    def counted(*arguments, **settings):
        calls.append(settings)
        return original(*arguments, **settings)

    monkeypatch.setattr(distances, "neighbour_measures", counted)
    compare_sets(features(200, 0), features(200, 1), k=3)
    assert calls == [{"k": 3}]
