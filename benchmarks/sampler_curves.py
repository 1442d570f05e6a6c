"""The cost of a code with engine `cpu` against the size of the map and the batch, as CSV and PNG.

    python benchmarks/sampler_curves.py [--out benchmarks/results/DEVICE-sampler-curves]

Priors of one shape on maps of 8x8 to 128x128, with and without attention, batch 1; and batches of 1
to 64 on a 16x16 map. With attention, a code costs more the more positions are before it. Without,
it costs less on wide maps, where more rows are drawn at once, in batches of 1 and 2. A code should
cost less in a batch, until arithmetic takes all the time. With --threads 1 times are CPU time,
which is meaningful even on a busy machine.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import matplotlib
from shared import measure

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sampler import prepared, seconds_of

from vqvae2_fast.models.configs import PixelSNAILConfig
from vqvae2_fast.sampling.engines.cpu import draw_cpu, packed_plan

SIZES, BATCHES = (8, 16, 32, 64, 128), (1, 2, 4, 8, 16, 32, 64)
SHAPE = {
    "num_embeddings": 512,
    "channels": 64,
    "residual_channels": 64,
    "num_blocks": 2,
    "layers_per_block": 2,
    "kernel_size": 5,
    "mask": "exclude",
    "num_heads": 4,
}
BATCH_MAP = 16


def code_microseconds(side: int, attention: bool, batch: int, rounds: int) -> float:
    """Microseconds per code of one sample, the median of some maps."""
    config = PixelSNAILConfig(size=(side, side), attention=attention, **SHAPE)
    _, plan, request = prepared(config, batch)
    packed = packed_plan(plan)
    seconds = statistics.median(
        seconds_of(lambda: draw_cpu(packed, request)) for _ in range(rounds)
    )
    return seconds / (side * side * batch) * 1e6


def draw(rows: list[dict[str, object]], caption: str, path: Path) -> None:
    figure, (by_size, by_batch) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for attention, colour in ((False, "tab:blue"), (True, "tab:orange")):
        name = "with attention" if attention else "without attention"
        for axis, curve, of in ((by_size, "size", "side"), (by_batch, "batch", "batch")):
            points = [r for r in rows if r["curve"] == curve and r["attention"] == attention]
            x = [point[of] for point in points]
            y = [point["us_a_code"] for point in points]
            axis.loglog(x, y, "o-", color=colour, label=name)
    for axis, ticks, label in (
        (by_size, SIZES, "side of the map, batch 1"),
        (by_batch, BATCHES, f"batch, {BATCH_MAP}x{BATCH_MAP} map"),
    ):
        axis.set_xlabel(label)
        axis.set_xticks(ticks, ticks)
        axis.minorticks_off()
        axis.set_ylabel("us per code")
        axis.set_ylim(bottom=1)
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.suptitle(caption, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--out", type=Path, default=Path("sampler-curves"))
    arguments = measure.parse(parser)
    machine = measure.machine()
    points = [("size", side, 1) for side in SIZES] + [("batch", BATCH_MAP, n) for n in BATCHES]
    rows: list[dict[str, object]] = []
    for curve, side, batch in points:
        for attention in (False, True):
            cost = code_microseconds(side, attention, batch, arguments.rounds)
            rows.append(
                {
                    "curve": curve,
                    "side": side,
                    "batch": batch,
                    "attention": attention,
                    "us_a_code": round(cost, 3),
                }
            )
            print(rows[-1], flush=True)
    with arguments.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    clock = "CPU time" if arguments.threads == 1 else "wall time"
    caption = f"{machine}, {clock}; 64 channels, 2 x 2 layers of 5x5, 512 codes"
    draw(rows, caption, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
