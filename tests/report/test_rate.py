"""The plot of quality against bits: which points are in view."""

from __future__ import annotations

from typing import Any

import pytest

from vqvae2_fast.metrics.reconstruction import Reconstruction
from vqvae2_fast.metrics.results import CompressedFiles, Evaluation
from vqvae2_fast.report import curves


def test_a_pipeline_that_costs_more_than_its_marginal_entropy_is_in_view(tmp_path, monkeypatch):
    figures: list[Any] = []
    new_figure = curves.new_figure

    def figure(width: float, height: float) -> Any:
        figures.append(new_figure(width, height))
        return figures[-1]

    monkeypatch.setattr(curves, "new_figure", figure)
    error = Reconstruction(0.4, 0.1, 10.0)
    found = Evaluation(
        22, error, {}, bits_per_image=2863, marginal_bits_per_image=525, bits_per_dim=0.2, codecs={}
    )
    files = [CompressedFiles(("top", "bottom"), 22, 2863, 2900, 2950, error)]
    curves.plot_rate(tmp_path / "rate.png", found, {"files": files})
    (axis,) = figures[0].axes
    assert axis.get_xlim() == (0, pytest.approx(1.1 * 2950))
