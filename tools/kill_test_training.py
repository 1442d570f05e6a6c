"""Kills training at random moments, resumes it, and compares it with an undisturbed run.

    python tools/kill_test_training.py training [--kills 50] [--seed 0]
    python tools/kill_test_training.py writing  [--kills 50] [--seed 0]

Runs of both stages in turn, on the embedded emoji and on made-up codes, each in a process of its
own, are ended by SIGKILL after a random time and resumed. `training` kills at any moment. `writing`
kills a random time after the writing of a checkpoint has begun. There a checkpoint is written after
each step, and a pause before each wait for the disk and each renaming of a folder slows it down.
The process tells through shared memory when it writes, and only kills that hit the writing count.

After each kill every visible checkpoint must be whole, the newest must be no older than before,
best/ must hold the record or be about to, and each line of log.jsonl must be that of the
undisturbed run. A run that reaches its end must leave the same log.jsonl (except for the seconds),
weights, average, optimiser, state and best/, bit for bit, and nothing unfinished. Prints one line
per kill and exits with 1 at the first failure."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from kill import contents, kill_after, unfinished

from vqvae2_fast.checkpoints import load_training
from vqvae2_fast.checkpoints.files import check_sums
from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageTensorDataset, Split, load_emoji
from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.testing.codes import CodeSet
from vqvae2_fast.training import Stage, TrainConfig, prior_stage, train, vqvae_stage
from vqvae2_fast.training.state import TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable

VQVAE = VQVAE2Config(
    image_size=(8, 8),
    strides=(2, 2),
    hidden_channels=16,
    residual_channels=8,
    num_embeddings=32,
    embedding_dim=8,
    restart=0.3,
)
PRIOR = PixelSNAILConfig(
    size=(4, 4),
    num_embeddings=16,
    channels=16,
    residual_channels=16,
    num_blocks=1,
    layers_per_block=1,
    kernel_size=3,
    num_heads=2,
    condition_sizes=((2, 2),),
    condition_channels=8,
    num_condition_layers=1,
    num_classes=3,
)
TRAINING = TrainConfig(
    steps=150,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=10,
    average_decay=0.9,
    log_every=3,
    validate_every=20,
    save_every=10,
    keep=3,
)
WRITING = TrainConfig(
    steps=40,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=10,
    average_decay=0.9,
    log_every=1,
    validate_every=2,
    save_every=1,
    keep=2,
)
PAUSE = 0.02  # seconds; a checkpoint has a dozen waits, and up to five renamings at its end


def image_stage(place: Path, config: TrainConfig) -> Stage:
    return vqvae_stage(VQVAE2(VQVAE), image_set("train"), image_set("held_out"), config, flip=True)


def code_stage(place: Path, config: TrainConfig) -> Stage:
    sets = code_set(place, 200), code_set(place, 40)
    return prior_stage(PixelSNAIL(PRIOR), *sets, config, level=1)


@cache
def image_set(split: Split) -> ImageTensorDataset:
    return load_emoji(split, 8)


@cache
def code_set(place: Path, count: int) -> Any:
    generator = torch.Generator().manual_seed(count)
    maps = [torch.randint(16, (count, side, side), generator=generator) for side in (2, 4)]
    labels = torch.randint(-1, 3, (count,), generator=generator)
    folder = Path(tempfile.mkdtemp(dir=place))
    return CodeSet(maps, 16, labels, ("a", "b", "c")).write(folder / "codes")


def run(
    make: Callable[[Path, TrainConfig], Stage],
    place: Path,
    config: TrainConfig,
    out: Path,
    slow: bool,
    writing: Any,
) -> None:
    """Begin or resume a run; `writing` is n while it writes its nth checkpoint, −n after it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stage = make(place, config)
    save, sync, rename = TrainingRun.save, os.fsync, os.rename

    def telling_save(*arguments: Any) -> None:
        writing.value = abs(writing.value) + 1
        save(*arguments)
        writing.value = -writing.value

    def slow_sync(descriptor: int) -> None:
        time.sleep(PAUSE)
        sync(descriptor)

    def slow_rename(source: Path, target: Path) -> None:
        time.sleep(2 * PAUSE)
        rename(source, target)
        time.sleep(PAUSE)

    TrainingRun.save = telling_save  # type: ignore[method-assign]
    if slow:
        os.fsync, os.rename = slow_sync, slow_rename
    train(stage, config, out=out, resume=True, progress=Progress(quiet=True))


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, without the seconds."""
    read = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [{name: v for name, v in line.items() if name != "seconds"} for line in read]


def check_broken_off(out: Path, peace: Path, before: int) -> int:
    """What a killed run left is whole; returns the step of its newest checkpoint."""
    newest = latest(out)
    step = load_training(newest).state["step"] if newest else 0
    assert step >= before, f"the newest checkpoint is of step {step}, it was of {before}"
    for folder in [*out.glob("checkpoints/step-*"), *out.glob("best")]:
        assert (folder / "files.json").exists(), folder
        check_sums(folder)
    if (out / "log.jsonl").exists():
        found = lines(out / "log.jsonl")
        assert found == lines(peace / "log.jsonl")[: len(found)], "the log differs"
        saved = [line for line in lines(peace / "log.jsonl") if line["step"] <= step]
        assert len(found) >= len(saved), f"the log lacks lines up to step {step}"
    return step


def check_finished(out: Path, peace: Path) -> None:
    assert lines(out / "log.jsonl") == lines(peace / "log.jsonl"), "the logs differ"
    found, expected = (contents(f, leave_out=(".lock", "log.jsonl")) for f in (out, peace))
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, data in expected.items():
        assert found[name] == data, f"{name} differs"
    assert not unfinished(out), unfinished(out)


def kill_runs(place: Path, kills: int, rng: random.Random, *, within_writing: bool) -> None:
    """Kill and resume runs of both stages in turn until `kills` kills have hit."""
    config = WRITING if within_writing else TRAINING
    writing = multiprocessing.get_context("fork").RawValue("i", 0)
    peace, seconds = {}, {}
    for make in (image_stage, code_stage):
        make(place, config)  # reads the data, once for all processes
        peace[make] = place / f"{make.__name__}-peace"
        begun = time.monotonic()
        kill_after(600.0, [partial(run, make, place, config, peace[make], within_writing, writing)])
        seconds[make] = time.monotonic() - begun
    hits = others = finished = 0
    rests: Counter[str] = Counter()
    make, other = image_stage, code_stage
    out, step = place / "0", 0
    while hits < kills or step:
        writing.value = 0
        # After the kills that were asked for, the last run is completed.
        limit, meanwhile = 600.0, lambda: None
        if hits < kills and within_writing:
            meanwhile = killing_writers(writing, rng)
        elif hits < kills:
            limit = rng.uniform(0, seconds[make] / 4)
        begun = time.monotonic()
        target = partial(run, make, place, config, out, within_writing, writing)
        if kill_after(limit, [target], meanwhile):
            counts = writing.value > 0 or not within_writing
            hits, others = hits + counts, others + (not counts)
            left = unfinished(out) if out.exists() else []
            rests.update(rest_of(name) for name in left if name.count("/") < 2)
            before, step = step, check_broken_off(out, peace[make], step)
            print(
                f"{'hit' if counts else 'missed'} {hits} after {time.monotonic() - begun:.1f} s: "
                f"{make.__name__}, "
                f"{'writing' if writing.value > 0 else 'training'}, checkpoint of step {step} "
                f"({step - before} new), unfinished: {', '.join(left[:1]) or 'none'}",
                flush=True,
            )
            continue
        check_finished(out, peace[make])
        finished += 1
        make, other = other, make
        out, step = place / str(finished), 0
    found = ", ".join(f"{count} {name}" for name, count in sorted(rests.items()))
    print(
        f"{hits} kills {'within the writing of checkpoints' if within_writing else 'in training'}"
        f"{f' ({others} more outside)' if within_writing else ''}, {finished} runs finished, each "
        f"bit for bit like an undisturbed one. Left by kills and cleared: {found or 'nothing'}."
    )


def killing_writers(writing: Any, rng: random.Random) -> Callable[[], None]:
    """Kills this process's children a random time after one began to write its nth checkpoint."""
    number, delay, begun = rng.randint(1, 5), rng.uniform(0, 30 * PAUSE), [0.0]

    def kill() -> None:
        if writing.value == number and not begun[0]:
            begun[0] = time.monotonic()
        if begun[0] and time.monotonic() - begun[0] >= delay:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    return kill


def rest_of(name: str) -> str:
    """The kind of leftover that a hidden path is."""
    base = Path(name).name
    what = next((n for n in ("step", "best", "log") if base.startswith(f".{n}")), "other")
    return f"{what}{Path(base).suffix}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("moments", choices=("training", "writing"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng, within_writing = random.Random(arguments.seed), arguments.moments == "writing"
    with tempfile.TemporaryDirectory() as folder:
        kill_runs(Path(folder), arguments.kills, rng, within_writing=within_writing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
