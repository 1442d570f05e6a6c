"""Compares trainings in 1, 2 and 4 gloo processes, in all the ways that a training can run.

    python tools/many_processes.py [--steps 30] [--processes 2 4] [--only NAME ...] [--compile]

Every way trains both stages (or the prior alone, where it shards) for the same steps with the same
batch of 12 ("uneven": of 7), on random data. Prints, for each, the largest difference of a logged
loss and of a weight from those of one plain process (or an uneven one), in the largest weight of
its tensor; whether the codebooks'
counts are equal; and the time of a step, and the share of it without processor time: what waits for
other processes, or for a busy machine. Exits with 1 if a float64 prior differs by more than 1e-10,
a float32 VQ-VAE by more than 1e-3, or a count at all, or if a loss or weight is not finite.
`--compile` adds Inductor, which compiles for minutes.

Float32 differs by more than its rounding, 6e-8: sums over other parts round otherwise, AdamW
divides by the roots of small mean squares, and the steps add up.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.training import Stage, TrainConfig, prior_stage, train, vqvae_stage
from vqvae2_fast.training.sharded import whole

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.codes import CodeSet  # noqa: E402
from helpers.compare import relative_difference  # noqa: E402
from helpers.models import SMALL_PRIOR, SMALL_VQVAE  # noqa: E402

BATCH = 12
WAYS = {
    "plain": {},
    "accumulated": {"batch_size": 2},
    "uneven": {"batch_size": 2, "global_batch": 7},
    "recomputed": {"recompute": True},
    "sharded": {"shard": True},
    "sharded, accumulated, recomputed": {"shard": True, "batch_size": 2, "recompute": True},
}
COMPILED = {"compiled": {"compile": True}, "compiled, sharded": {"compile": True, "shard": True}}
BOUNDS = {"vqvae": 1e-3, "prior": 1e-10}


def vqvae(config: TrainConfig, _: Path) -> Stage:
    torch.manual_seed(0)
    pixels = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    sets = ImageTensorDataset(pixels[:39]), ImageTensorDataset(pixels[39:])
    model = VQVAE2(replace(SMALL_VQVAE, decay=0.8, restart=0.5))
    return vqvae_stage(model, *sets, config, flip=True, crop_padding=1)


def prior(config: TrainConfig, folder: Path) -> Stage:
    torch.manual_seed(0)
    maps = [torch.randint(8, (50, side, side)) for side in (2, 4)]
    store = CodeSet(maps, 8, torch.randint(-1, 3, (50,)), ("a", "b", "c")).write(folder)
    model = PixelSNAIL(replace(SMALL_PRIOR, dropout=0.2)).double()
    sets = store.select(torch.arange(39)), store.select(torch.arange(39, 50))
    return prior_stage(model, *sets, config, level=1, label_dropout=0.3)


def run_rank(rank: int, count: int, steps: int, names: list[str], folder: Path) -> None:
    """All ways in one process of a group: weights, losses and times, into the folder."""
    torch.set_num_threads(1)
    if count > 1:
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    plain = TrainConfig(
        steps=steps,
        batch_size=BATCH,
        learning_rate=3e-3,
        warmup_steps=2,
        average_decay=0.9,
        log_every=1,
        validate_every=steps,
    )
    for name in names:
        changes = (WAYS | COMPILED)[name]
        config = replace(plain, **{"global_batch": BATCH, **changes})
        for make in (vqvae, prior):
            if make is vqvae and config.shard:
                continue
            stage = make(config, folder / f"codes {name} {rank}")
            began, used = time.monotonic(), time.process_time()
            trained = train(stage, config, progress=Progress(quiet=True))
            seconds, busy = time.monotonic() - began, time.process_time() - used
            weights = {k: whole(v).contiguous() for k, v in stage.model.state_dict().items()}
            if rank == 0:
                save_file(weights, folder / f"{name} {make.__name__}")
                losses = [line["loss"] for line in trained.log if "loss" in line]
                told = {"losses": losses, "seconds": seconds / steps, "waits": 1 - busy / seconds}
                (folder / f"{name} {make.__name__}.json").write_text(json.dumps(told))
    gc.collect()  # wrappers of models are parts of cycles and hold the group
    if count > 1:
        dist.destroy_process_group()


def start(count: int, steps: int, names: list[str], folder: Path) -> None:
    folder.mkdir()
    command = [sys.executable, __file__, "--rank"]
    tail = [str(count), str(steps), str(folder), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*command, str(rank), *tail], env=environment) for rank in range(count)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(f"{count} processes failed")


def compare(expected: Path, found: Path, count: int, names: list[str]) -> bool:
    """Prints a row for each way and stage; returns whether all are within their bounds."""
    good = True
    for name in names:
        reference = name if name == "uneven" else "plain"
        for stage, bound in BOUNDS.items():
            path = found / f"{name} {stage}"
            if not path.exists():
                continue
            one, other = load_file(expected / f"{reference} {stage}"), load_file(path)
            told, before = (
                json.loads(p.with_name(p.name + ".json").read_text())
                for p in (path, expected / f"{reference} {stage}")
            )
            weight = relative_difference(other, one)
            pairs = zip(told["losses"], before["losses"], strict=True)
            loss = float(torch.tensor([abs(a - b) / abs(b) for a, b in pairs]).max())
            counts = all(torch.equal(one[k], other[k]) for k in one if k.endswith("cluster_size"))
            good &= weight <= bound and math.isfinite(loss) and counts
            print(
                f"{count} {stage:6} {name:33} loss {loss:7.1e}  weights {weight:7.1e}  "
                f"counts {'equal' if counts else 'DIFFER'}  {1e3 * told['seconds']:6.1f} ms/step, "
                f"{max(0.0, told['waits']):4.0%} waits",
                flush=True,
            )
    return good


def main() -> int:
    if sys.argv[1:2] == ["--rank"]:
        rank, count, steps, folder, *names = sys.argv[2:]
        run_rank(int(rank), int(count), int(steps), names, Path(folder))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--only", nargs="+", choices=[*WAYS, *COMPILED])
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    wanted = [*(arguments.only or WAYS), *(COMPILED if arguments.compile else ())]
    names = list(dict.fromkeys(wanted))
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "1"
        start(1, arguments.steps, sorted({"plain", *names}), alone)
        good = compare(alone, alone, 1, names)
        for count in arguments.processes:
            start(count, arguments.steps, names, Path(folder) / str(count))
            good &= compare(alone, Path(folder) / str(count), count, names)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
