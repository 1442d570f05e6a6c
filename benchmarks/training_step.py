"""Times training steps of both stages against the port's arithmetic and compiled references.

    python benchmarks/training_step.py                        # all, two threads, under ten minutes
    python benchmarks/training_step.py emoji64_top --rounds 21 --threads 1 --clock cpu
    python benchmarks/training_step.py port_top_small --against port --profile

A step is forward, loss, backward and Adam's update, for ours and the references in its fused form
as in `training/loop.py`, for the port as in its scripts. Contenders run in turns in this process;
printed are medians, the ratio of medians to ours, and in brackets the 20th and 80th percentile of
the ratio within a round. Without --rounds there are as many as keep the run short. Peak memory is
that of a process for each contender: how far the resident memory rises during the third step above
what stood before it (weights and Adam's moments, printed as `held`), so gradients, activations and
workspace are counted.

Contenders: `port` is `shared/plain_port.py`, the port's arithmetic in plain PyTorch (the port is on
no registry), `drop_in` our modules under its names, `reference` our model with every operator its
PyTorch reference, `compiled` the same with its loss through torch.compile, `rounded` ours with the
factors of 3×3 convolutions rounded to bfloat16, which differs where there is AMX.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

import torch
from shared import measure
from shared.memory import numbers_of, resident, rise_of
from shared.training_steps import PRIORS, VQVAES, flops_of, make_step

DEFAULT_STEPS = ["emoji64_top", "emoji64_bottom", "imagenet256_vqvae", "port_top"]
OTHERS = ("port", "drop_in", "reference", "compiled", "rounded")
# Rounds that keep the whole run under ten minutes on two cores.
ROUNDS = {"port_top": 3, "imagenet256_vqvae": 5}


def contenders_of(name: str, wanted: list[str]) -> list[str]:
    if not wanted:
        wanted = ["port", "compiled"] if name in PRIORS else ["port"]
    return ["ours", *(contender for contender in OTHERS if contender in wanted)]


def peak_mib(name: str, contender: str) -> list[float]:
    """Rise of memory during a step, and memory before it, in a separate process."""
    threads = str(torch.get_num_threads())
    return numbers_of(__file__, "--memory-of", name, contender, "--threads", threads, count=2)


def print_memory(name: str, contender: str) -> None:
    before_model = resident("VmRSS")
    step = make_step(name, contender)
    step.run()
    step.run()
    step.optimizer.zero_grad(set_to_none=True)
    held = resident("VmRSS") - before_model
    print(rise_of(step.run), held)


def profile(name: str, contender: str) -> None:
    """Where a step's time goes, by operator, on one thread."""
    step = make_step(name, contender)
    step.run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step.run()
    print(
        profiler.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50
        )
    )


class Progress:
    """Prints lines about what begins to standard error, at most one per ten seconds."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self.last >= 10:
            self.last = now
            print(f"  {now - self.start:.0f} s: {text}", file=sys.stderr, flush=True)


progress = Progress()


def compare(name: str, options: argparse.Namespace) -> None:
    names = contenders_of(name, options.against)
    flops = flops_of(name)
    progress(f"{name}: contenders {', '.join(names)}")
    steps = {contender: make_step(name, contender) for contender in names}
    clock = measure.CLOCKS[options.clock]
    for contender, step in steps.items():
        progress(f"{name}: first step of {contender}")
        step.run()  # compiles, packs, starts the codebooks
    rounds = options.rounds or ROUNDS.get(name, 15)
    seconds: dict[str, list[float]] = {contender: [] for contender in names}
    ceilings = measure.ceilings()
    seconds |= {ceiling: [] for ceiling in ceilings}
    for round_number in range(rounds):
        for i in range(len(names)):
            contender = names[(i + round_number) % len(names)]
            progress(f"{name}: round {round_number + 1} of {rounds}, {contender}")
            time.sleep(measure.SETTLE)
            start = clock()
            steps[contender].run()
            seconds[contender].append(clock() - start)
        for ceiling, run in ceilings.items():
            time.sleep(measure.SETTLE)
            start = clock()
            run()
            seconds[ceiling].append(clock() - start)
    del steps
    rate = measure.matmul_rate(seconds["ceiling:matmul"])
    print(
        f"{name}, {rounds} rounds, load {os.getloadavg()[0]:.1f}; {flops / 1e9:.1f} GFLOP; "
        f"matmul {rate:.0f} GFLOP/s"
    )
    rows = [report(name, contender, seconds, flops, options) for contender in names]
    if options.save:
        measure.save(rows)


def report(
    name: str,
    contender: str,
    seconds: dict[str, list[float]],
    flops: int,
    options: argparse.Namespace,
) -> measure.Row:
    times = seconds[contender]
    median = statistics.median(times)
    progress(f"{name}: peak memory of {contender}")
    peak, held = peak_mib(name, contender) if options.memory else (float("nan"),) * 2
    line = f"  {contender:10} {median * 1e3:10.1f} ms, peak {peak:7.1f} MiB, held {held:6.1f} MiB"
    if contender != "ours":
        middle, low, high = measure.ratio(times, seconds["ours"])
        line += f"  {middle:.2f}x ours ({low:.2f}-{high:.2f})"
    print(line, flush=True)
    batch = (PRIORS.get(name) or VQVAES[name])[0]
    return measure.make_row(
        contender,
        seconds,
        op="training_step",
        owner=contender,
        mode=name,
        shape=f"batch{batch}",
        flops=flops,
        traffic=0,
        peak_mib=peak,
        clock=options.clock,
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=0)
    measure.add_clock(parser)
    known = [*PRIORS, *VQVAES]
    parser.add_argument("steps", nargs="*", default=DEFAULT_STEPS, help=f"of {', '.join(known)}")
    parser.add_argument(
        "--against", nargs="+", choices=OTHERS, default=[], help="contenders to compare ours with"
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--save", action="store_true", help="append to results/<device>.csv")
    parser.add_argument("--profile", action="store_true", help="operators of one step of each")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = measure.parse(parser)
    if unknown := sorted(set(options.steps) - set(known)):
        parser.error(f"expected steps of {', '.join(known)}, got {', '.join(unknown)}")
    if options.memory_of:
        print_memory(*options.memory_of)
        return
    print(f"{measure.machine()}, {options.clock} clock")
    start = time.monotonic()
    for name in options.steps:
        if options.profile:
            for contender in contenders_of(name, options.against):
                print(f"{name}, {contender}")
                profile(name, contender)
        else:
            compare(name, options)
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
