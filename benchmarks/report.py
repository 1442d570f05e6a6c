"""Draws results/<device>.csv: bars of times, a roofline and cost curves, as PNG files next to it.

python benchmarks/report.py benchmarks/results/<device>.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {
    "ours": "tab:blue",
    "faiss": "tab:orange",
    "lean": "tab:green",
    "lean_compiled": "tab:olive",
    "onehot": "tab:red",
    "lucidrains": "tab:purple",
    "port": "tab:brown",
    "compiled": "tab:cyan",
    # On a GPU.
    "eager": "tab:green",
    "compile": "tab:olive",
    "lean compile": "tab:olive",
    "one-hot": "tab:red",
    "one-hot compile": "tab:pink",
    "flash-kmeans": "tab:orange",
    "cuvs": "tab:brown",
    "cudnn": "tab:cyan",
    "kernel": "navy",
    "index_add": "tab:purple",
    "sdpa without dropout": "tab:gray",
}


def latest(path: Path) -> list[dict[str, str]]:
    """The last row of each workload × contender."""
    with path.open() as file:
        rows = {(row["mode"], row["shape"], row["contender"]): row for row in csv.DictReader(file)}
    return list(rows.values())


def draw_bars(rows: list[dict[str, str]], path: Path) -> None:
    groups: dict[str, list[dict[str, str]]] = {}
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
    figure.suptitle(caption(rows[-1]), fontsize=7)
    figure.savefig(path, dpi=120)


def draw_roofline(rows: list[dict[str, str]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 5), constrained_layout=True)
    matmul = float(rows[-1]["matmul_gflop_per_s"])
    copy = float(rows[-1]["copy_gb_per_s"])
    product = "float16" if rows[-1]["clock"] == "device" else "float32"
    intensities = [2.0**-4, matmul / copy, 2.0**10]
    axis.plot(
        intensities,
        [min(matmul, copy * i) for i in intensities],
        "k-",
        linewidth=1,
        label=f"{product} product {matmul:.0f} GFLOP/s, copy {copy:.0f} GB/s",
    )
    for row in rows:
        rate, bandwidth = float(row["gflop_per_s"]), float(row["gb_per_s"])
        if bandwidth > 0 and not row["mode"].startswith("call"):
            colour = COLOURS.get(row["contender"], "tab:gray")
            axis.plot(rate / bandwidth, rate, "o", color=colour, markersize=4)
    present = {row["contender"] for row in rows}
    for name, colour in COLOURS.items():
        if name in present:
            axis.plot([], [], "o", color=colour, label=name)
    axis.set(xscale="log", yscale="log", xlabel="flop per byte of least traffic", ylabel="GFLOP/s")
    axis.legend(fontsize=7)
    axis.set_title(caption(rows[-1]), fontsize=7)
    figure.savefig(path, dpi=120)


def draw_costs(rows: list[dict[str, str]], path: Path) -> None:
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
        axis.legend(fontsize=7)
    figure.suptitle(caption(rows[-1]), fontsize=7)
    figure.savefig(path, dpi=120)


def caption(row: dict[str, str]) -> str:
    machine = f"{row['device']}, {row['threads']} threads, {row['clock']} clock"
    if row["clock"] == "device":
        machine = row["device"]
    return f"{machine}, commit {row['commit']}, {row['date']}\n{row['versions']}"


def draw(path: Path) -> None:
    """Writes the plots of a table next to it."""
    rows = latest(path)
    costs = [row for row in rows if row["mode"].startswith("cost_")]
    if costs:
        draw_costs(costs, path.with_name(f"{path.stem}-costs.png"))
        rows = [row for row in rows if row not in costs]
    draw_bars(rows, path.with_name(f"{path.stem}-times.png"))
    draw_roofline(rows, path.with_name(f"{path.stem}-roofline.png"))


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/report.py benchmarks/results/<device>.csv")
    draw(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
