"""The step of two processes next to that of one: the same batch (strong), and twice it (weak).

    python benchmarks/training_processes.py [--steps 30]

Both stages of `emoji32` in float32, one thread a process, joined by gloo: batches of 32, and in two
processes of 32 and of 64. The three run one after the other, not in turns, so ratios have no
spread. Prints the machine; the median step; the share of it that reads the batch; the share without
processor time, which waits for the other process or for a busy machine; and the processor time of a
step in all processes together, in that of one process: what the division costs whatever else the
machine does.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from shared import measure

from vqvae2_fast import VQVAE2, PixelSNAIL, preset
from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.training import Stage, TrainConfig, prior_stage, train, vqvae_stage

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.codes import CodeSet  # noqa: E402

BATCH = 32
FIRST = 3  # steps that are not counted


@dataclass
class Clock:
    """When each batch was asked for and had, and the processor time so far."""

    asked: list[float] = field(default_factory=list)
    had: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            self.asked.append(time.monotonic())
            self.busy.append(time.process_time())
            batch = next(batches)
            self.had.append(time.monotonic())
            yield batch

    def step(self) -> dict[str, float]:
        """Medians over the steps, in seconds."""
        reading = [b - a for a, b in zip(self.asked, self.had, strict=True)][FIRST:]
        whole, busy = (
            [b - a for a, b in zip(times[FIRST:], times[FIRST + 1 :], strict=False)]
            for times in (self.asked, self.busy)
        )
        found = {"seconds": whole, "reading": reading, "busy": busy}
        return {name: statistics.median(values) for name, values in found.items()}


def vqvae(config: TrainConfig, _: Path) -> Stage:
    torch.manual_seed(0)
    pixels = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8)
    sets = ImageTensorDataset(pixels), ImageTensorDataset(pixels[:32])
    return vqvae_stage(VQVAE2(preset("emoji32").vqvae), *sets, config)


def prior(config: TrainConfig, folder: Path) -> Stage:
    torch.manual_seed(0)
    maps = [torch.randint(256, (256, side, side)) for side in (8, 16)]
    store = CodeSet(maps, 256, torch.randint(9, (256,)), tuple("abcdefghi")).write(folder)
    model = PixelSNAIL(preset("emoji32").priors[1])
    return prior_stage(model, store, store.select(torch.arange(32)), config, level=1)


def run_rank(rank: int, count: int, batch: int, steps: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if count > 1:
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    config = TrainConfig(
        steps=steps,
        batch_size=batch // count,
        global_batch=batch,
        log_every=steps,
        validate_every=2 * steps,
        validate_items=2,
        precision="float32",
    )
    found = {}
    for make in (vqvae, prior):
        stage, clock = make(config, folder / f"codes {rank}"), Clock()
        own = stage.batches
        timed = replace(stage, batches=lambda first, own=own, c=clock: c.timed(own(first)))
        train(timed, config, progress=Progress(quiet=True))
        found[make.__name__] = clock.step()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    gc.collect()  # wrappers of models are parts of cycles and hold the group
    if count > 1:
        dist.destroy_process_group()


def measured(count: int, batch: int, steps: int) -> list[dict[str, dict[str, float]]]:
    with TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    "--rank",
                    *map(str, (rank, count, batch, steps)),
                    folder,
                ],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(count)
        ]
        with ThreadPoolExecutor(count) as pool:
            waits = {pool.submit(process.wait): rank for rank, process in enumerate(started)}
            try:
                for ended in as_completed(waits):
                    if code := ended.result():
                        raise SystemExit(
                            f"process {waits[ended]} of {count} failed with exit code {code}; its "
                            "message is above."
                        )
            finally:  # the others would wait for one that failed until gloo gives up
                for process in started:
                    process.kill()
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        *numbers, folder = sys.argv[2:]
        run_rank(*map(int, numbers), Path(folder))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    if steps < FIRST + 2:
        parser.error(f"--steps: expected {FIRST + 2} or more, of which {FIRST} are not counted")
    torch.set_num_threads(1)  # as each of the processes has
    print(f"{measure.machine()}, {steps} steps")
    ways = {"one": (1, BATCH), "two, strong": (2, BATCH), "two, weak": (2, 2 * BATCH)}
    found = {name: measured(*way, steps) for name, way in ways.items()}
    for stage in ("vqvae", "prior"):
        one = found["one"][0][stage]
        for name, ranks in found.items():
            seconds = max(rank[stage]["seconds"] for rank in ranks)
            reading = max(rank[stage]["reading"] for rank in ranks)
            busy = sum(rank[stage]["busy"] for rank in ranks)
            waits = max(0.0, 1 - busy / len(ranks) / seconds)
            print(
                f"{stage} {name:12} {1e3 * seconds:7.1f} ms a step, {seconds / one['seconds']:.2f} "
                f"of one; {reading / seconds:.1%} reads, {waits:.0%} waits; processor time "
                f"{busy / one['busy']:.2f} of one"
            )


if __name__ == "__main__":
    main()
