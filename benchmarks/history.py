"""Draws how our times and the factors of the others went over the commits, one picture a processor.

python benchmarks/history.py

Rows of results/<device>.csv are added, and replaced, as commits measure anew. This reads each
version of those files that git has and the one of the working tree. It writes
results/<processor>-history.png for every processor on which a workload was measured at two commits
under the same conditions, and says which processors have none.

What is compared with what:
- Commits stand in the order in which their rows came into the repository.
- The package counts as it comes: rows of a lower SIMD level than one measured before are left out.
- The factors of the others are of the same run as our time.
- A line joins the last runs of commits that had as many threads and the same clock. It breaks where
  the product that a run measures as its ceiling is OTHER_MACHINE times as fast or as slow as the
  one before: a processor's name does not tell all machines apart.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator
from report import COLOURS, Row, measured_together
from results_page import NAMES, milliseconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results"
LEVELS = (
    *("scalar", "neon"),
    *("avx2", "avx2_vnni", "avx512", "avx512_bf16", "avx512_vnni", "avx512_amx"),
)
OTHER_MACHINE = 1.5
STYLES = {"1 thread": "--", "2 threads": "-"}


class Run(NamedTuple):
    """What one process measured of one workload, one after the other in turns."""

    place: int  # in the order of the rows
    commit: str
    changed: bool  # whether the tree had changes
    conditions: str  # the threads, or the clock of a GPU
    product: float  # GFLOP/s of the ceiling
    ours: Row
    others: dict[str, float]  # how many times as long each of them takes

    def follows(self, before: Run) -> bool:
        """Whether the change since then can be the package's."""
        ratio = self.product / before.product
        return self.conditions == before.conditions and 1 / OTHER_MACHINE < ratio < OTHER_MACHINE


def git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(
            f"benchmarks/history.py: expected a clone of the repository, with git; "
            f"git {arguments[0]} says: {run.stderr.strip()}"
        )
    return run.stdout


def versions(folder: Path) -> list[dict[str, str]]:
    """The tables in `folder` by name: as each commit that touched one left them, oldest first, and
    as they are now."""
    if git(folder, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise SystemExit(
            "benchmarks/history.py: expected the whole history, but this clone is shallow. "
            "Run: git fetch --unshallow"
        )
    found = []
    for commit in git(folder, "log", "--reverse", "--format=%H", "--", "./*.csv").split():
        names = git(folder, "ls-tree", "--name-only", commit, "./").split()
        tables = [name for name in names if name.endswith(".csv")]
        found.append({name: git(folder, "show", f"{commit}:./{name}") for name in tables})
    found.append({path.name: path.read_text() for path in sorted(folder.glob("*.csv"))})
    return found


def rows_of(tables: list[dict[str, str]]) -> list[list[Row]]:
    """The contenders' rows of each version of the tables; most versions repeat those before."""
    return [
        [
            row
            for text in version.values()
            for row in csv.DictReader(io.StringIO(text, newline=None))
            if "contender" in row  # some tables of this folder hold something else
        ]
        for version in tables
    ]


def by_processor(versions_of_rows: list[list[Row]]) -> dict[str, list[Row]]:
    """Rows as the package comes, in order, by the processor's name."""
    found: dict[str, list[Row]] = {}
    highest: dict[str, int] = {}
    for rows in versions_of_rows:
        for row in rows:
            processor, level = processor_and_level(row["device"])
            highest[processor] = max(level, highest.get(processor, level))
        for row in rows:
            processor, level = processor_and_level(row["device"])
            if level == highest[processor]:
                found.setdefault(processor, []).append(row)
    return found


def processor_and_level(device: str) -> tuple[str, int]:
    """A row's device is a processor, its cores and a SIMD level, or a GPU."""
    name, _, level = device.rpartition(", ")
    return (name, LEVELS.index(level)) if level in LEVELS else (device, 0)


def runs_of(rows: list[Row]) -> dict[tuple[str, str], list[Run]]:
    """Runs with a row of ours, in order, by workload and shape."""
    found: dict[tuple[str, str], list[Run]] = {}
    for place, contenders in enumerate(measured_together(rows)):
        ours = contenders.pop("ours", None)
        if ours is None or ours["mode"].startswith(("cost_", "call")):
            continue
        time = float(ours["median_ms"])
        factors = {name: float(row["median_ms"]) / time for name, row in contenders.items()}
        run = Run(
            place=place,
            commit=ours["commit"].removesuffix("+"),
            changed=ours["commit"].endswith("+"),
            conditions=conditions(ours),
            product=float(ours["matmul_gflop_per_s"]),
            ours=ours,
            others=factors,
        )
        found.setdefault((ours["mode"], ours["shape"]), []).append(run)
    return found


def conditions(row: Row) -> str:
    if row["clock"] == "device":
        return "device"
    return "1 thread" if row["threads"] == "1" else f"{row['threads']} threads"


def lines_of(runs: list[Run]) -> list[list[Run]]:
    """Runs to join, the last of each commit, in lines of at least one."""
    last = {(run.commit, run.conditions): run for run in runs}
    lines: list[list[Run]] = []
    for run in last.values():
        line = next((line for line in lines if run.follows(line[-1])), None)
        if line is None:
            lines.append([run])
        else:
            line.append(run)
    return lines


def with_history(workloads: dict[tuple[str, str], list[Run]]) -> dict[tuple[str, str], list[Run]]:
    """Those with a line through two commits."""
    return {
        key: runs
        for key, runs in workloads.items()
        if any(len(line) > 1 for line in lines_of(runs))
    }


def draw_lines(axis: Axes, runs: list[Run], columns: list[str], contender: str) -> None:
    """Our time, or the factor of another: every run as a point, and the lines."""

    def place(run: Run) -> tuple[int, float]:
        ours = float(run.ours["median_ms"])
        return columns.index(run.commit), ours if contender == "ours" else run.others[contender]

    present = [run for run in runs if contender == "ours" or contender in run.others]
    colour = COLOURS.get(contender, "tab:gray")
    for run in present:
        inside = "white" if run.changed else colour
        axis.plot(*place(run), "o", color=colour, markerfacecolor=inside, markersize=4)
        if contender == "ours":
            text = milliseconds(run.ours["median_ms"])
            offset = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
            axis.annotate(text, place(run), (0, 6), **offset)
    for line in lines_of(present):
        style = STYLES.get(line[0].conditions, "-.")
        axis.plot(*zip(*map(place, line), strict=True), style, color=colour, linewidth=1, zorder=1)
    axis.plot([], [], color=colour, label=NAMES.get(contender, contender))
    # At least a factor of two, so that noise does not look like a change.
    low, high = axis.dataLim.intervaly
    axis.set_ylim(low / 1.4, high * 1.7)


def draw(processor: str, workloads: dict[tuple[str, str], list[Run]], path: Path) -> None:
    runs = sorted((run for group in workloads.values() for run in group), key=lambda run: run.place)
    dates = {run.commit: run.ours["date"] for run in runs}
    columns = list(dates)
    figure, axes = plt.subplots(
        len(workloads),
        2,
        figsize=(11, 1.2 + 1.5 * len(workloads)),
        squeeze=False,
        sharex=True,
        constrained_layout=True,
    )
    for (left, right), ((mode, shape), group) in zip(axes, workloads.items(), strict=True):
        for axis in (left, right):
            axis.set(yscale="log", xlim=(-0.5, len(columns) - 0.5))
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
            axis.set_xticks(range(len(columns)), [f"{each}\n{dates[each]}" for each in columns])
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
        draw_lines(left, group, columns, "ours")
        right.axhline(1, color="black", linewidth=0.7)
        for contender in dict.fromkeys(name for run in group for name in run.others):
            draw_lines(right, group, columns, contender)
        left.set_title(f"{mode} {shape}: our time in ms", fontsize=9, loc="left")
        right.set_title("how many times as long others take", fontsize=9, loc="left")
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for name in sorted({run.conditions for run in runs}):
        axes[0, 0].plot([], [], STYLES.get(name, "-."), color=COLOURS["ours"], label=name)
    axes[0, 0].legend(*[each[1:] for each in axes[0, 0].get_legend_handles_labels()], fontsize=7)
    figure.suptitle(
        f"{processor}, at the highest SIMD level of each commit. A point is a run: hollow, if the "
        "tree had changes.\nA line ends where the threads or the machine change.",
        fontsize=8,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    from shared.measure import slug

    # It takes no options, and must not draw for somebody who asks what it does.
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for processor, rows in by_processor(rows_of(versions(RESULTS))).items():
        workloads = with_history(runs_of(rows))
        if not workloads:
            print(f"{processor}: no workload was measured at two commits alike.")
            continue
        path = RESULTS / f"{slug(processor)}-history.png"
        draw(processor, workloads, path)
        print(f"{processor}: {len(workloads)} workloads in {path.name}")


if __name__ == "__main__":
    main()
