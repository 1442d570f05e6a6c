"""Times engine `eager` against the naive sampler on the port's default priors, one image at batch
1.

    python benchmarks/sampler_eager.py [--threads 2] [--rounds 3] [--naive-rows 3] [--profile]

With one thread times are CPU time, which is meaningful even on a busy machine.

The naive time is the full forward for each code, measured at some rows after the draws and summed,
as in `benchmarks/sampler.py`; its ratio to the median draw has no spread. `--profile` adds where a
position's time goes: each call of a column is timed by itself, and the minimum of some repetitions
is summed by operator.
"""

from __future__ import annotations

import collections
import statistics

import torch
from sampler import PRIORS, add_naive_rows, naive_seconds, prepared, seconds_of
from shared import measure

from vqvae2_fast.sampling.engines.eager import _Network, draw_eager


@torch.inference_mode()
def profile(plan, request) -> None:
    network = _Network(plan, request)
    row = min(seconds_of(lambda: network.start_row(0)) for _ in range(3))
    network.draw_row()
    column = plan.size[1] // 2
    calls, least = collections.Counter(), collections.Counter()
    for step in network._steps[column]:
        function = getattr(step, "func", step)
        name = getattr(function, "__name__", str(function))
        calls[name] += 1
        least[name] += min(seconds_of(step) for _ in range(7))
    print(f"  row phase {row * 1e3:.0f} ms; a position {sum(least.values()) * 1e6:.0f} us:")
    for name, seconds in least.most_common(8):
        print(f"    {name} x {calls[name]}: {seconds * 1e6:.0f} us")


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--maps", nargs="+", choices=list(PRIORS), default=list(PRIORS))
    add_naive_rows(parser, default=3)
    parser.add_argument("--profile", action="store_true")
    arguments = measure.parse(parser)
    print(measure.machine())
    image = naive = 0.0
    for name in arguments.maps:
        config = PRIORS[name]
        prior, plan, request = prepared(config, 1)
        draw_eager(plan, request)  # allocates, and warms up PyTorch's kernels
        each = []
        for _ in range(arguments.rounds):
            each.append(seconds_of(lambda p=plan, r=request: draw_eager(p, r)))
        seconds = statistics.median(each)
        image += seconds
        print(f"{name}: {seconds:.2f} s ({min(each):.2f} to {max(each):.2f})", flush=True)
        if arguments.profile:
            profile(plan, request)
        if arguments.naive_rows:
            slow = naive_seconds(config, prior, 1, arguments.naive_rows)
            naive += slow
            print(f"  naive {slow:.0f} s, {slow / seconds:.0f} times this", flush=True)
    print(f"an image: {image:.2f} s")
    if naive:
        print(f"naive {naive:.0f} s: {naive / image:.0f} times")


if __name__ == "__main__":
    main()
