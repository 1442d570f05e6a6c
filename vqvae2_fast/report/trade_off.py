"""The trade-off of rejection: measures against the share of samples kept, as one PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vqvae2_fast.metrics.distances import MEASURES
from vqvae2_fast.report.curves import new_figure
from vqvae2_fast.report.pictures import write_picture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vqvae2_fast.metrics.distances import Measure
    from vqvae2_fast.metrics.results import RejectionPoint

__all__ = ["plot_trade_off"]

_COLUMNS = 5


def plot_trade_off(path: Path, points: Sequence[RejectionPoint]) -> None:
    """Draw accuracy and the measures that have a panel by the share kept.

    A measure that no point has, because there are too few images, is not drawn.
    """
    panels = [
        (network, shown)
        for network in points[0].measures
        for panel in dict.fromkeys(measure.panel for measure in MEASURES if measure.panel)
        if (shown := _measured(points, network, panel))
    ]
    columns = min(1 + len(panels), _COLUMNS)
    rows = -(-(1 + len(panels)) // columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    shares = [point.share for point in points]
    axes[0].plot(shares, [point.accuracy for point in points], "o-", label="accuracy")
    _by_share(axes[0], shares, "share in its class by the classifier")
    for axis, (network, shown) in zip(axes[1:], panels, strict=False):
        for number, measure in enumerate(shown):
            _draw(axis, points, network, measure.name, f"C{number}")
        title = " and ".join(measure.label_in(network) for measure in shown)
        if shown[0].label == shown[0].name:
            title = f"{title}, {network}"
        _by_share(axis, shares, title)
    for axis in axes[1 + len(panels) :]:
        axis.remove()
    figure.tight_layout()
    write_picture(path, figure)


def _measured(points: Sequence[RejectionPoint], network: str, panel: str) -> list[Measure]:
    """The measures of a panel that some point has."""
    return [
        measure
        for measure in MEASURES
        if measure.panel == panel
        and any(measure.name in point.measures[network] for point in points)
    ]


def _by_share(axis: Any, shares: list[float], title: str) -> None:
    axis.set(title=title, xlabel="share kept", xscale="log")
    axis.set_xlim(1.2 * max(shares), min(shares) / 1.2)  # the same on all panels
    axis.set_xticks(shares)
    axis.set_xticklabels([f"{share:g}" for share in shares])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _draw(
    axis: Any, points: Sequence[RejectionPoint], network: str, measure: str, colour: str
) -> None:
    found = [point for point in points if measure in point.measures[network]]
    shares = [point.share for point in found]
    own = [point.measures[network][measure] for point in found]
    values = [one.value for one in own]
    reach = [[one.value - one.low for one in own], [one.high - one.value for one in own]]
    axis.errorbar(shares, values, yerr=reach, fmt="o-", color=colour, capsize=2, label=measure)
    floors = [point.floor[network][measure].value for point in found]
    label = f"{measure} of as many real images"
    axis.plot(shares, floors, ":", color=colour, lw=1, label=label)
