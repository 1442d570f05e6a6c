"""Kills sampling at random moments, resumes it, and compares the folder with an undisturbed one.

    python tools/kill_test_sampling.py [--kills 50] [--images 60] [--writers 1] [--seed 0]

The command `sample` draws from small random models in a process of its own, or in several that
share the work as under torchrun. After a random part of the time that it takes undisturbed, it is
ended by SIGKILL and started again with --resume. When it reaches its end, the folder must have the
same files, byte for byte, as an undisturbed one of a single process; then the next folder is begun,
until `--kills` kills have hit. After each kill every line of the index must have its image, every
image must be whole and correct, and none that was in the index may be lost. Prints one line per
kill and exits with 1 at the first failure."""

from __future__ import annotations

import argparse
import io
import os
import random
import socket
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from kill import contents, kill_after, unfinished

from vqvae2_fast.checkpoints import save
from vqvae2_fast.cli import main as vqvae2_fast
from vqvae2_fast.data.sample_folder import read_index
from vqvae2_fast.testing.pipelines import tiny_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 4
PAUSE = 0.004  # seconds added to each wait for the disk, so that kills hit between the writes
# Several processes take them in turns.
LOCK = (".lock",)


def sample(
    place: Path, out: Path, images: int, *more: str, rank: int = 0, writers: int = 1, port: int = 0
) -> None:
    torch.set_num_threads(1)
    if writers > 1:  # what torchrun sets
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(writers),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
    with redirect_stdout(io.StringIO()):
        code = vqvae2_fast(
            [
                "sample",
                "--pipeline",
                str(place / "pipeline"),
                "--n",
                str(images),
                "--batch-size",
                str(BATCH),
                "--temperature",
                "0.9",
                "0.8",
                "--quiet",
                "--out",
                str(out),
                *more,
            ]
        )
    assert code == 0, f"sample failed with {code}"


def sample_slowly(*arguments: Any, **options: Any) -> None:
    """`sample`, in a process of its own, on a slow disk."""
    sync = os.fsync

    def slow_sync(descriptor: int) -> None:
        time.sleep(PAUSE)
        sync(descriptor)

    os.fsync = slow_sync
    sample(*arguments, **options)


def writing(
    place: Path, out: Path, images: int, writers: int, *more: str
) -> list[Callable[[], None]]:
    """What each of the processes does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        partial(sample_slowly, place, out, images, *more, rank=rank, writers=writers, port=port)
        for rank in range(writers)
    ]


def held(out: Path, peace: dict[str, bytes]) -> set[int]:
    """The samples in the index so far, which must be sound; each image must be as undisturbed."""
    rows = list(read_index(out))
    numbers = {row["sample"] for row in rows}
    assert len(numbers) == len(rows), "a sample is in the index twice"
    missing = [row["file"] for row in rows if not (out / row["file"]).exists()]
    assert not missing, f"in the index without an image: {missing}"
    for image in (out / "images").glob("[!.]*"):
        name = f"images/{image.name}"
        assert image.read_bytes() == peace[name], f"{name} is half written, or another"
    return numbers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--images", type=int, default=60, help="of each folder")
    parser.add_argument("--writers", type=int, default=1, help="processes that share the work")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)
    count, writers = arguments.images, arguments.writers
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save(tiny_pipeline(), place / "pipeline", class_names=("cat", "dog", "emu"))
        sample(place, place / "peace", count)  # which loads code and warms caches, too
        peace = contents(place / "peace", leave_out=LOCK)
        begun = time.monotonic()
        assert kill_after(600.0, writing(place, place / "shared", count, writers)) == 0
        seconds = time.monotonic() - begun
        assert contents(place / "shared", leave_out=LOCK) == peace

        kills = folders = left = orphans = 0
        out, before, more = place / "0", set[int](), ()
        while kills < arguments.kills or more:
            targets = writing(place, out, count, writers, *more)
            # After the kills that were asked for, the last folder is completed.
            limit = rng.uniform(0, seconds) if kills < arguments.kills else 600.0
            if kill_after(limit, targets):
                kills, more = kills + 1, ("--resume",)
                now = held(out, peace)
                assert before <= now, f"samples are gone: {before - now}"
                rests = unfinished(out) if out.exists() else []
                unlisted = len(list((out / "images").glob("[!.]*"))) - len(now)
                left, orphans = left + len(rests), orphans + unlisted
                print(
                    f"kill {kills} after {limit:.2f} s: {len(now)} samples ({len(now - before)} "
                    f"new), {unlisted} images not yet in the index, {len(rests)} unfinished files"
                )
                before = now
                continue
            assert contents(out, leave_out=LOCK) == peace, out
            folders += 1
            out, before, more = place / str(folders), set(), ()
    print(
        f"{kills} kills ({seconds:.1f} s of work), {folders} folders finished, each equal byte for "
        f"byte to an undisturbed one; {left} unfinished files and {orphans} images not yet in "
        "the index were left by kills and cleared."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
