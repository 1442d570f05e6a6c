"""Tests a pipeline in states that no other test thought of: random sequences of operations.

    python tools/state_fuzz --operations 100000 --seed 0
    python tools/state_fuzz --minutes 60
    python tools/state_fuzz --plant all     # faults that the package once had: each must be found
    python tools/state_fuzz --steps swap_averages:17,draw:5     # these steps again, in this process

A sequence of operations (operations.py, quantizers.py) begins with a new tiny pipeline: training,
averages, copies, files, writes by every way to the weights, altered layers, settings of PyTorch,
threads, forks, and between them draws, scores, files of codes and forwards of quantisers. Draws are
compared with engine `reference`, quantisers with a twin that nothing happened to, decoded codes
with those that were encoded. A call may be refused by a sentence of the package where that is
allowed. Any other error, a difference, a crash or a hang is a failure.

Sequences run in child processes. At the first failure its steps are left out one after another for
as long as what is left fails. The fewest are printed, and the exit code is 1. With --plant it is 1
if a fault is not found.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import random
import sys
import time
import traceback
from typing import TYPE_CHECKING

import operations  # noqa: F401
import quantizers  # noqa: F401
import torch
from plants import PLANTS
from world import OPERATIONS, Refused, World, run_step

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Steps = list[tuple[str, int]]
FORK = multiprocessing.get_context("fork")
LENGTH = 40  # operations of a sequence
TOGETHER = 25  # sequences of a child process
HANG = 60.0  # seconds that a step may take on a loaded machine; a hundredth of a second is usual
ATTEMPTS = 150  # sequences that are tried in search of the fewest steps


def steps_of(seed: int, number: int) -> Steps:
    """Sequence `number` of a seed."""
    rng = random.Random(f"{seed} {number}")
    weights = [weight for _, weight in OPERATIONS.values()]
    names = rng.choices(list(OPERATIONS), weights, k=LENGTH)
    return [(name, rng.randrange(2**31)) for name in names]


def work(sequences: list[Steps], plant: str | None, pipe: Connection) -> None:
    """In the child process: sends "begun" for each step, "refused", and at last how one failed."""
    faulthandler.enable()
    if plant is not None:
        PLANTS[plant]()
    for steps in sequences:
        world = World()
        for name, number in steps:
            pipe.send("begun")
            try:
                run_step(world, name, number)
            except Refused:
                pipe.send("refused")
            except Exception as error:
                lines = traceback.format_exception(error)[-12:]
                pipe.send(" ".join([*world.said, "\n", *lines]))
                return


def run(sequences: list[Steps], plant: str | None, hang: float = HANG) -> tuple[int, int, str]:
    """Runs sequences in a child process until one fails.

    Returns:
        How many steps began and how many were refused, and how the last one failed, if it did.
    """
    reading, writing = FORK.Pipe(duplex=False)
    child = FORK.Process(target=work, args=(sequences, plant, writing))
    child.start()
    writing.close()
    begun = refused = 0
    failure = ""
    try:
        while not failure:
            if not reading.poll(hang):
                child.kill()
                failure = f"no end of a step after {hang:.0f} s"
                break
            told = reading.recv()
            begun += told == "begun"
            refused += told == "refused"
            failure = "" if told in ("begun", "refused") else told
    except EOFError:
        pass
    child.join()
    return begun, refused, failure or (f"exit code {child.exitcode}" if child.exitcode else "")


def shrunk(steps: Steps, failure: str) -> tuple[Steps, str]:
    """The fewest steps found that fail, and how; larger parts are left out first."""
    size, attempts = len(steps), 0
    while size:
        start = 0
        while start < len(steps) and attempts < ATTEMPTS:
            fewer = steps[:start] + steps[start + size :]
            again, attempts = run([fewer], None, HANG / 4)[2], attempts + 1
            if again:
                steps, failure = fewer, again
            else:
                start += size
        size //= 2
    return steps, failure


def fuzz(options: argparse.Namespace, plant: str | None = None) -> bool:
    """Runs sequences until there are enough, or one fails; returns whether one did."""
    began, begun, refused, number, failure = time.monotonic(), 0, 0, 0, ""

    def seconds() -> float:
        return time.monotonic() - began

    while not failure and (
        begun < options.operations if options.minutes is None else seconds() < 60 * options.minutes
    ):
        sequences = [steps_of(options.seed, number + i) for i in range(TOGETHER)]
        of_child, refused_there, failure = run(sequences, plant)
        begun, refused, number = begun + of_child, refused + refused_there, number + TOGETHER
        if failure or number % (10 * TOGETHER) == 0:
            print(f"{begun:,d} operations in {seconds():.0f} s", flush=True)
    if failure and plant is None:
        which, place = divmod(of_child - 1, LENGTH)
        steps = sequences[which][: place + 1]
        print(f"The last failed, in sequence {number - TOGETHER + which}. {failure}", flush=True)
        steps, failure = shrunk(steps, failure)
        print(f"The fewest steps: {failure}\n  python tools/state_fuzz --steps", end=" ")
        print(",".join(f"{name}:{seed}" for name, seed in steps))
    elif failure:
        print(f"{plant}: found in {seconds():.0f} s. {failure.strip().splitlines()[-1]}")
    print(
        f"seed {options.seed}: {begun:,d} operations in {seconds():.0f} s, {refused:,d} of them "
        f"refused in words, {'one failed' if failure else 'none failed'}",
        flush=True,
    )
    return bool(failure)


def replay(text: str) -> None:
    world = World()
    for step in text.split(","):
        name, _, number = step.partition(":")
        try:
            run_step(world, name, int(number))
        except Refused as error:
            world.said.append(f"refused: {error}")
        finally:
            print(*world.said, flush=True)
            world.said.clear()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, help="run for so long instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", choices=["all", *PLANTS], help="a fault that must be found")
    parser.add_argument("--steps", help="run these, NAME:NUMBER,...")
    options = parser.parse_args()
    if options.operations < 1:
        parser.error(f"--operations: expected 1 or more, got {options.operations}")
    torch.set_num_threads(1)  # no thread of OpenMP starts before a fork
    World()  # what it keeps need not be made by every child
    if options.steps:
        replay(options.steps)
        return 0
    if options.plant:
        plants = PLANTS if options.plant == "all" else [options.plant]
        return int(not min([fuzz(options, plant) for plant in plants]))
    return int(fuzz(options))


if __name__ == "__main__":
    sys.exit(main())
