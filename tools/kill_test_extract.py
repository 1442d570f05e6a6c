"""Kills extraction at random moments, resumes it, and compares the store with an undisturbed one.

    python tools/kill_test_extract.py [--kills 50] [--images 1500] [--seed 0]

The command `extract` runs in a process of its own on a folder of made-up images. After a random
part of the time that it takes undisturbed, it is ended by SIGKILL and started again with --resume.
When it reaches its end, both stores must have the same files, byte for byte, as undisturbed ones.
Then it begins the next stores, until `--kills` kills have hit. After each kill the stores must
open, hold only whole shards, and have lost no record. Prints one line per kill and exits with 1 at
the first failure."""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kill import contents, kill_after, unfinished
from PIL import Image

from vqvae2_fast.checkpoints import save
from vqvae2_fast.cli import main as vqvae2_fast
from vqvae2_fast.data import CodeStore, verify
from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2

SHARD_RECORDS = 50  # small, so that many kills hit the closing of a shard
# Several processes take it in turns.
LOCK = (".lock",)


def write_images(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        path = (
            folder / ("train" if number % 10 else "held_out") / "ab"[number % 2] / f"{number}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(path)


def model() -> VQVAE2:
    torch.manual_seed(0)
    config = VQVAE2Config(
        image_size=(16, 16),
        strides=(2, 2),
        hidden_channels=16,
        residual_channels=8,
        num_embeddings=64,
        embedding_dim=16,
    )
    made = VQVAE2(config)
    made(torch.rand(64, 3, 16, 16) * 2 - 1)  # in training: the codebooks begin among the vectors
    return made.eval()


def extract(place: Path, out: Path, *more: str) -> None:
    torch.set_num_threads(1)
    with redirect_stdout(io.StringIO()):
        code = vqvae2_fast(
            [
                "extract",
                "--vqvae",
                str(place / "vqvae"),
                "--data",
                str(place / "images"),
                "--quiet",
                "--flip",
                "--copies",
                "1",
                "--shard-records",
                str(SHARD_RECORDS),
                "--out",
                str(out),
                *more,
            ]
        )
    assert code == 0, f"extract failed with {code}"


def held(out: Path) -> Counter[str]:
    """Records of the stores so far, which must be sound."""
    counts: Counter[str] = Counter()
    for split in ("train", "held_out"):
        if (out / split / "manifest.json").exists():
            for report in verify(out / split):
                assert not report.problem, report.problem
            counts[split] = len(CodeStore(out / split))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_images(place / "images", arguments.images)
        save(model(), place / "vqvae")
        extract(place, place / "first")  # which loads code and warms caches
        begun = time.monotonic()
        extract(place, place / "peace")
        seconds = time.monotonic() - begun
        peace = contents(place / "peace", leave_out=LOCK)

        kills = stores = left = 0
        out, before, more = place / "0", Counter[str](), ()
        while kills < arguments.kills or more:
            target = partial(extract, place, out, *more)
            # After the kills that were asked for, the last store is completed.
            limit = rng.uniform(0, seconds) if kills < arguments.kills else 600.0
            if kill_after(limit, [target]):
                kills, more = kills + 1, ("--resume",)
                now = held(out)
                assert not before - now, f"records are gone: {before - now}"
                rests = unfinished(out) if out.exists() else []
                left += len(rests)
                print(
                    f"kill {kills} after {limit:.2f} s: {sum(now.values())} records "
                    f"({sum((now - before).values())} new), {len(rests)} unfinished files"
                )
                before = now
                continue
            assert contents(out, leave_out=LOCK) == renamed(peace, "peace", out.name), out
            stores += 1
            out, before, more = place / str(stores), Counter[str](), ()
    print(
        f"{kills} kills ({seconds:.1f} s of work), {stores} stores finished, each equal byte for "
        f"byte to an undisturbed one; {left} unfinished files were left by kills and cleared."
    )
    return 0


def renamed(files: dict[str, bytes], old: str, new: str) -> dict[str, bytes]:
    """The contents, with the folder's name replaced because result.json contains it."""
    return {
        name: data.replace(f"/{old}".encode(), f"/{new}".encode()) for name, data in files.items()
    }


if __name__ == "__main__":
    sys.exit(main())
