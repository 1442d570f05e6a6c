"""Kills training in several processes and continues it with other numbers of them.

    python tools/torchrun_kill_test.py [--stage prior] [--kills 20] [--seed 0] [--steps 60]

A VQ-VAE on the embedded emoji, or a sharded prior of their codes, is trained in float32 under
torchrun by 2, 4, 1 and 2 processes in turn, each turn ended by SIGKILL after a random time, until
it is done. Every second kill hits one process alone, which torchrun then starts anew with the
others (`--max-restarts`). The batch of a step is the same throughout (`--train.global-batch`). The
weights at the end must be those of an unbroken run in one process, to 1e-4 of the largest number of
each tensor. Prints one line per turn and exits with 1 at the first failure.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from vqvae2_fast.checkpoints import load_training
from vqvae2_fast.checkpoints.locate import latest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.compare import relative_difference  # noqa: E402

VQVAE = [
    *("--model.hidden-channels", "8", "--model.residual-channels", "4"),
    *("--model.num-residual-blocks", "1", "--model.num-embeddings", "16"),
    *("--model.embedding-dim", "4"),
]
PRIOR = [
    *("--model.channels", "16", "--model.residual-channels", "16", "--model.num-heads", "2"),
    *("--model.num-blocks", "1", "--model.layers-per-block", "1", "--train.shard"),
]
TRAINING = [
    *("--resume", "--train.precision", "float32", "--train.global-batch", "8"),
    *("--train.save-every", "2", "--train.validate-every", "1000", "--train.validate-items", "8"),
]
ORDER = (2, 4, 1, 2)
BOUND = 1e-4


def command_of(stage: str, folder: Path, steps: int) -> list[str]:
    """The training that is killed, but for --out. Codes for a prior are extracted first."""
    length = ["--train.steps", str(steps)]
    if stage == "vqvae":
        return ["train-vqvae", *VQVAE, *TRAINING, *length]
    vqvae, codes = ["--out", str(folder / "vqvae")], str(folder / "codes")
    undisturbed(["train-vqvae", *VQVAE, *TRAINING, "--train.steps", "2", *vqvae])
    undisturbed(["extract", "--vqvae", str(folder / "vqvae"), "--out", codes])
    return ["train-prior", "--level", "bottom", "--codes", codes, *PRIOR, *TRAINING, *length]


def start(command: list[str], processes: int) -> subprocess.Popen[bytes]:
    """One turn: torchrun with its processes, in a group of their own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    torchrun += ["--max-restarts", "3", "--no-python", "--", "vqvae2-fast"]
    return subprocess.Popen(
        [*torchrun, *command, "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def undisturbed(command: list[str]) -> None:
    """Runs a command in one process that nothing kills; ends this one with 1 if it fails."""
    if start(command, 1).wait():
        raise SystemExit(f"failed, though undisturbed: {shlex.join(command)}")


def workers(parent: int) -> list[int]:
    """The processes that torchrun has started."""
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
    return [int(number) for number in found.split()]


def newest(run: Path) -> int:
    path = latest(run)
    return int(path.name.removeprefix("step-")) if path else 0


def advanced(turn: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Wait until a turn has saved a later step, or has ended."""
    while turn.poll() is None and newest(run) <= step:
        time.sleep(0.02)


def end(turn: subprocess.Popen[bytes]) -> None:
    """Kill torchrun and its processes, which are in sessions of their own."""
    for number in [*workers(turn.pid), turn.pid]:
        kill(number)
    turn.wait()


def kill(number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended in the meantime
        os.kill(number, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=("vqvae", "prior"), default="vqvae")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error(f"--kills: expected 1 or more, got {arguments.kills}")
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        command = command_of(arguments.stage, Path(folder), arguments.steps)
        undisturbed([*command, "--out", str(whole)])
        kills, number = 0, 0
        while newest(broken) < arguments.steps:
            processes, before = ORDER[number % len(ORDER)], newest(broken)
            turn = start([*command, "--out", str(broken)], processes)
            advanced(turn, broken, before)
            alone = number % 2 == 1 and processes > 1
            killed = []
            if alone and kills < arguments.kills and turn.poll() is None:
                time.sleep(chance.uniform(0, 0.1))
                if at_work := workers(turn.pid):
                    kill(chance.choice(at_work))
                    killed.append("one killed")
                    kills += 1
                advanced(turn, broken, newest(broken))
            if kills < arguments.kills and turn.poll() is None:
                time.sleep(chance.uniform(0, 0.1))
                end(turn)
                killed.append("all killed")
                kills += 1
            turn.wait()
            number += 1
            print(
                f"{processes} processes from step {before} to {newest(broken)}, "
                f"{', then '.join(killed) or 'none killed'}, exit code {turn.returncode}",
                flush=True,
            )
            if newest(broken) == before:
                print("no progress")
                return 1
        found, expected = load_training(broken).model, load_training(whole).model
        worst = relative_difference(found.state_dict(), expected.state_dict())
        print(f"{kills} kills; largest difference of a tensor, in its largest weight: {worst:.1e}")
        return int(not worst <= BOUND)  # NaN fails


if __name__ == "__main__":
    sys.exit(main())
