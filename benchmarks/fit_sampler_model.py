"""Fits the constants of engine `cuda`'s model (csrc/cuda/sampler/cards.h) to measured stage times.

    python benchmarks/fit_sampler_model.py stage_times.json

`gpu_sampler.py --stage-times` writes the file. The constants are fitted by least squares and
printed beside today's, with the error of both; a constant that the times do not determine is said
to be so and keeps its value. Nothing is written.

What a stage is to take is linear in the constants' prices, except that of some parts only the
longest counts (`Terms` in csrc/cuda/sampler/model.h). Which ones are the longest is taken from the
fit before, until that no longer changes.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Stage = dict[str, Any]
Row = dict[str, float]

LATENCIES = ("kTelling", "kL2Trip", "kSumLatency", "kDrawing")
PER_CYCLE = ("kSharedBytesPerCycle", "kL2BytesPerCycle", "kFmaPerCycle")
BANDWIDTHS = ("l2_bandwidth", "memory_bandwidth")
NAMES = (*LATENCIES, *PER_CYCLE, *BANDWIDTHS)
# The constants that price what overlaps in a stage.
OVERLAPPING = {
    "shared": "kSharedBytesPerCycle",
    "streamed": "kL2BytesPerCycle",
    "from_l2": "l2_bandwidth",
    "from_memory": "memory_bandwidth",
    "products": "kFmaPerCycle",
}


def prices_of(constants: dict[str, float]) -> dict[str, float]:
    """Seconds of a unit: latencies as they are, of rates the inverse."""
    clock = constants["clock"]
    prices = {name: constants[name] for name in LATENCIES}
    prices |= {name: 1 / (constants[name] * clock) for name in PER_CYCLE}
    return prices | {name: 1 / constants[name] for name in BANDWIDTHS}


def constants_of(prices: dict[str, float], clock: float) -> dict[str, float]:
    constants = {name: prices[name] for name in LATENCIES}
    constants |= {name: 1 / (prices[name] * clock) for name in PER_CYCLE}
    return constants | {name: 1 / prices[name] for name in BANDWIDTHS}


def rows_of(stage: Stage, prices: dict[str, float]) -> dict[str, tuple[Row, float]]:
    """Units of each price in a stage's handover, telling and work, and seconds besides; of what
    overlaps, the part that takes longest at these prices."""
    work = dict.fromkeys(NAMES, 0.0)
    work["kL2Trip"] = stage["trips"]
    work["kSumLatency"] = stage["sums"]
    work["kDrawing"] = stage["draws"]
    staged = stage["staged"] * prices["kL2BytesPerCycle"]
    if staged > stage["more_stagings"] * prices["kL2Trip"]:
        work["kL2BytesPerCycle"] += stage["staged"]
    else:
        work["kL2Trip"] += stage["more_stagings"]
    longest = max(OVERLAPPING, key=lambda term: stage[term] * prices[OVERLAPPING[term]])
    work[OVERLAPPING[longest]] += stage[longest]
    return {
        "handover": ({"kL2Trip": stage["polls"]}, 0.0),
        "telling": ({"kTelling": 1.0}, 0.0),
        "work": (work, stage["seconds"]),
    }


def expected(stage: Stage, prices: dict[str, float]) -> dict[str, float]:
    """Seconds of a stage's handover, telling and work by the model."""
    return {
        part: sum(units * prices[name] for name, units in row.items()) + seconds
        for part, (row, seconds) in rows_of(stage, prices).items()
    }


@dataclass(frozen=True)
class Fit:
    """Prices, and which of them the times determine."""

    prices: dict[str, float]
    determined: dict[str, bool]
    rounds: int


def fit(stages: list[Stage], prices: dict[str, float], most_rounds: int = 50) -> Fit:
    """Least squares over all stages' `handover`, `telling` and `work`, in seconds, where they have
    them.

    Args:
        prices: Where the search begins, and what prices keep that the times do not determine.

    Raises:
        ValueError: No stage has a time.
    """
    start = dict(prices)
    determined: dict[str, bool] = {}
    before: list[Row] = []
    for rounds in range(1, most_rounds + 1):
        rows: list[Row] = []
        times: list[float] = []
        for stage in stages:
            for part, (row, seconds) in rows_of(stage, prices).items():
                if part in stage:
                    rows.append(row)
                    times.append(stage[part] - seconds)
        if not rows:
            raise ValueError("fit: expected stages with measured times, got none.")
        if rows == before:
            return Fit(prices, determined, rounds - 1)
        before = rows
        # In units of today's prices, so that columns are comparable.
        matrix = np.array([[row.get(name, 0.0) * start[name] for name in NAMES] for row in rows])
        left = np.array(times) - matrix.sum(axis=1)
        scale = np.abs(matrix).max()
        change, _, rank, _ = np.linalg.lstsq(matrix / scale, left / scale, rcond=1e-8)
        free = np.linalg.svd(matrix)[2][rank:]  # directions that change no time
        known = np.abs(free).max(axis=0, initial=0.0) < 1e-6
        determined = dict(zip(NAMES, known.tolist(), strict=True))
        prices = {
            # A rate cannot be infinite: a part that seems to take no time is not determined.
            name: start[name] * (1 + c) if determined[name] and c > -1 else start[name]
            for name, c in zip(NAMES, change.tolist(), strict=True)
        }
        determined |= {
            name: determined[name] and c > -1
            for name, c in zip(NAMES, change.tolist(), strict=True)
        }
    return Fit(prices, determined, most_rounds)


def error(stages: list[Stage], prices: dict[str, float]) -> float:
    """Root of the mean square, in seconds, over all measured parts."""
    squares = [
        (stage[part] - seconds) ** 2
        for stage in stages
        for part, seconds in expected(stage, prices).items()
        if part in stage
    ]
    return math.sqrt(sum(squares) / len(squares))


def report(recorded: dict[str, Any]) -> str:
    """The table of constants, today's and fitted."""
    stages = [stage for case in recorded["cases"] for stage in case["stages"]]
    today = recorded["constants"]
    start = prices_of(today)
    found = fit(stages, start)
    fitted = constants_of(found.prices, today["clock"])
    lines = [
        f"{recorded['device']}, as {recorded['card']}: {len(stages)} stages, "
        f"{found.rounds} rounds; clock {today['clock'] / 1e9:.2f} GHz as assumed",
        f"{'constant':22} {'today':>12} {'fitted':>12}",
    ]
    for name in NAMES:
        value = f"{fitted[name]:12.4g}" if found.determined[name] else "not determined"
        lines.append(f"{name:22} {today[name]:12.4g} {value}")
    before, after = (error(stages, prices) * 1e6 for prices in (start, found.prices))
    lines.append(f"{'error, us':22} {before:12.4g} {after:12.4g}")
    for case in recorded["cases"]:
        parts = [
            (stage[part], seconds)
            for stage in case["stages"]
            for part, seconds in expected(stage, found.prices).items()
            if part in stage
        ]
        measured, model = (sum(seconds) * 1e6 for seconds in zip(*parts, strict=True))
        lines.append(f"{case['name']}: stages one by one {measured:.1f} us, fitted {model:.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="written by gpu_sampler.py --stage-times")
    options = parser.parse_args()
    print(report(json.loads(options.file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
