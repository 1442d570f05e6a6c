"""Draws results/<device>.csv: bars of times, a roofline and cost curves, as PNG files next to it.

python benchmarks/report.py benchmarks/results/<device>.csv

Rows of other threads or another clock get pictures of their own, which their names tell.
"""

from __future__ import annotations

import argparse
import csv
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.figure import Figure

Row = dict[str, str]
COLOURS = {
    "ours": "tab:blue",
    "faiss": "tab:orange",
    "lean": "tab:green",
    "lean_compiled": "tab:olive",
    "onehot": "tab:red",
    "lucidrains": "tab:purple",
    "port": "tab:brown",
    "compiled": "tab:cyan",
    "reference": "tab:gray",
    "reference_compiled": "tab:cyan",
    "onehot_compiled": "tab:pink",
    # On a GPU.
    "flash-kmeans": "tab:orange",
    "cuvs": "tab:brown",
    "cudnn": "tab:green",
    "kernel": "navy",
    "sdpa without dropout": "tab:gray",
}
# The ceilings are a run's own, with four digits: they tell runs at one commit apart.
SAME_RUN = (
    *("mode", "shape", "commit", "threads", "clock"),
    *("matmul_gflop_per_s", "copy_gb_per_s"),
)


def read(path: Path) -> list[Row]:
    with path.open() as file:
        return list(csv.DictReader(file))


def last_of_each(rows: Iterable[Row]) -> list[Row]:
    """The last row of each workload × contender."""
    return list({(row["mode"], row["shape"], row["contender"]): row for row in rows}.values())


def measured_together(rows: Iterable[Row]) -> list[dict[str, Row]]:
    """What one process measured of one workload in turns, each as rows by contender, in order.

    Only rows of one run may be divided by each other.
    """
    together: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        together.setdefault(tuple(row[key] for key in SAME_RUN), {})[row["contender"]] = row
    return list(together.values())


def latest(rows: Iterable[Row]) -> list[dict[str, Row]]:
    """One run of ours for each workload: of those with the most contenders the last.

    The fastest contender may be absent from a smaller run.
    """
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for run in measured_together(rows):
        if "ours" not in run:
            continue
        workload = (run["ours"]["mode"], run["ours"]["shape"])
        if len(run) >= len(found.get(workload, ())):
            found[workload] = run
    return list(found.values())


def conditions(row: Row) -> str:
    """What rows that are drawn together share; empty for a GPU, where nothing differs."""
    if row["clock"] == "device":
        return ""
    return f"{row['threads']} thread{'s' * (row['threads'] != '1')}, {row['clock']} clock"


def groups_of(rows: list[Row]) -> dict[str, list[Row]]:
    """By conditions, the last row of each workload × contender."""
    return {
        name: last_of_each(row for row in rows if conditions(row) == name)
        for name in dict.fromkeys(map(conditions, rows))
    }


def draw_bars(rows: list[Row], path: Path) -> None:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['mode']} {row['shape']}", []).append(row)
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(8, 1.1 * len(rows) * 0.35 + len(groups)),
        squeeze=False,
        constrained_layout=True,
    )
    for axis, (name, members) in zip(axes[:, 0], groups.items(), strict=True):
        members = sorted(members, key=lambda row: -float(row["median_ms"]))
        middle = [float(row["median_ms"]) for row in members]
        low = [m - float(row["p20_ms"]) for m, row in zip(middle, members, strict=True)]
        high = [float(row["p80_ms"]) - m for m, row in zip(middle, members, strict=True)]
        labels = [
            row["owner"] if row["contender"] == "ours" else row["contender"] for row in members
        ]
        colours = [COLOURS.get(row["contender"], "tab:gray") for row in members]
        bars = axis.barh(labels, middle, color=colours, xerr=[low, high])
        axis.bar_label(bars, fmt="%.3g ms", padding=4, fontsize=7)
        axis.set_title(name, fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.margins(x=0.15)
    figure.suptitle(caption(rows), fontsize=7)
    save(figure, path)


def ceilings(row: Row) -> tuple[float, float]:
    """The product's GFLOP/s and the copy's GB/s, measured in turns with the row."""
    return float(row["matmul_gflop_per_s"]), float(row["copy_gb_per_s"])


def draw_roofline(rows: list[Row], path: Path) -> None:
    """Rates, and the roof of each run: a line joins a point to its own roof."""
    figure, axis = plt.subplots(figsize=(7, 5), constrained_layout=True)
    for matmul, copy in dict.fromkeys(map(ceilings, rows)):
        intensities = [2.0**-4, matmul / copy, 2.0**12]
        roof = [min(matmul, copy * i) for i in intensities]
        axis.plot(intensities, roof, color="silver", linewidth=0.8, zorder=1)
    for row in rows:
        rate, intensity = float(row["gflop_per_s"]), intensity_of(row)
        matmul, copy = ceilings(row)
        colour = COLOURS.get(row["contender"], "tab:gray")
        heights = [rate, min(matmul, copy * intensity)]
        axis.plot([intensity] * 2, heights, color=colour, linewidth=0.7, alpha=0.6)
        axis.plot(intensity, rate, "o", color=colour, markersize=4)
    product = "float16" if rows[0]["clock"] == "device" else "float32"
    matmuls, copies = zip(*map(ceilings, rows), strict=True)
    label = f"{product} product {span(matmuls)} GFLOP/s, copy {span(copies)} GB/s"
    axis.plot([], [], color="silver", label=label)
    present = {row["contender"] for row in rows}
    for name, colour in COLOURS.items():
        if name in present:
            axis.plot([], [], "o", color=colour, label=name)
    axis.set(xscale="log", yscale="log", xlabel="flop per byte of least traffic", ylabel="GFLOP/s")
    axis.legend(fontsize=7)
    axis.set_title(caption(rows), fontsize=7)
    save(figure, path)


def intensity_of(row: Row) -> float:
    return float(row["gflop_per_s"]) / float(row["gb_per_s"])


def span(values: Iterable[float]) -> str:
    """The least and the largest, without digits after the point."""
    ends = sorted(values)
    return " to ".join(dict.fromkeys(f"{end:.0f}" for end in (ends[0], ends[-1])))


def has_roof(row: Row) -> bool:
    """Whether a roofline shows it: calls are too short, and of a training step no traffic is
    known."""
    return float(row["gb_per_s"]) > 0 and not row["mode"].startswith("call")


def draw_costs(rows: list[Row], path: Path) -> None:
    """Time against N, K and D; the dotted line is proportional, through our last point."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), constrained_layout=True)
    for position, (axis, size) in enumerate(zip(axes, "nkd", strict=True)):
        points = [row for row in rows if row["mode"] == f"cost_{size}"]
        for contender in dict.fromkeys(row["contender"] for row in points):
            curve = sorted(
                (int(row["shape"].split("x")[position]), float(row["median_ms"]))
                for row in points
                if row["contender"] == contender
            )
            colour = COLOURS.get(contender, "tab:gray")
            axis.plot(*zip(*curve, strict=True), "o-", color=colour, label=contender, markersize=4)
            if contender == "ours":
                (first, _), (last, time) = curve[0], curve[-1]
                axis.plot([first, last], [time * first / last, time], "k:", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel=size.upper(), ylabel="ms")
        if points:
            axis.legend(fontsize=7)
    figure.suptitle(caption(rows), fontsize=7)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)


def caption(rows: list[Row]) -> str:
    """What all of these rows were measured on, which have their conditions in common."""

    def all_of(key: str) -> list[str]:
        return list(dict.fromkeys(row[key] for row in rows))

    commits, dates = all_of("commit"), sorted(all_of("date"))
    parts = [*all_of("device"), conditions(rows[0])]
    parts += [f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}"]
    parts += [" to ".join(dict.fromkeys((dates[0], dates[-1])))]
    lines = [", ".join(filter(None, parts)), *all_of("versions")]
    return "\n".join(textwrap.fill(line, 120) for line in lines)


def draw(path: Path) -> None:
    """Writes the plots of a table next to it."""
    for name, rows in groups_of(read(path)).items():
        stem = "-".join([path.stem, *name.replace(",", "").split()])
        costs = [row for row in rows if row["mode"].startswith("cost_")]
        others = [row for row in rows if row not in costs]
        pictures = {
            "costs": (draw_costs, costs),
            "times": (draw_bars, others),
            "roofline": (draw_roofline, list(filter(has_roof, others))),
        }
        for kind, (draw_rows, drawn) in pictures.items():
            if drawn:
                draw_rows(drawn, path.with_name(f"{stem}-{kind}.png"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="benchmarks/results/<device>.csv")
    table = parser.parse_args().results
    if not table.is_file():
        parser.error(f"expected a file of results, got {table}")
    draw(table)


if __name__ == "__main__":
    main()
