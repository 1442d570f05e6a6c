"""Where each microsecond of a position goes: the pixel phase of engine `cpu`, stage by stage.

    python benchmarks/sampler_profile.py [--threads 2] [--weights float32] [--maps top bottom]

The port's default priors at batch 1, as in `benchmarks/sampler.py`. Every thread records at each
position how long it works in a stage and how long it waits at its end (two reads of a clock, 50 ns
per stage). Of all positions of a column's parity (a tap at -2 is read at every second one) the
share `--keep` that was disturbed least is used, so that a busy machine can be measured too. Shown
are the mean of both parities, of the thread that worked longest, and the longest wait. A draw with
a profile has one position at a time, also where one without would draw several rows at once.

The floor of a stage is its bytes at the rate of the read loop of `benchmarks/sampler.py`, in the
same run: weights, and for the heads the keys and values of the positions before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sampler import (
    PRIORS,
    WEIGHTS,
    mean_bytes,
    packed_as,
    pixel_bytes,
    pointwise_weights,
    prepared,
    read_seconds,
)
from shared import measure

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.engines.cpu import draw_cpu_timed

if TYPE_CHECKING:
    from vqvae2_fast.sampling.plan import SamplingPlan


def stage_bytes(plan: SamplingPlan, itemsize: float, all_bytes: float) -> dict[str, float]:
    """Bytes that a position reads in each stage of `SAMPLER_STAGES`, the mean over the map."""
    found = {stage: count * itemsize for stage, count in pointwise_weights(plan).items()}
    found["convolutions"] = all_bytes - sum(found.values())
    if plan.attention is not None:
        positions = plan.size[0] * plan.size[1]
        found["heads"] = 4 * (positions - 1) / 2 * plan.attention.key_value_bias.numel()
    return found


def main() -> None:
    parser = measure.parser(__doc__, rounds=2)
    parser.add_argument("--weights", choices=WEIGHTS, default="float32")
    parser.add_argument("--maps", nargs="+", choices=list(PRIORS), default=list(PRIORS))
    parser.add_argument("--keep", type=float, default=0.5, help="share of quietest positions")
    arguments = measure.parse(parser)
    print(measure.machine())
    size = WEIGHTS[arguments.weights]
    stages = _native.module.SAMPLER_STAGES
    for name in arguments.maps:
        config = PRIORS[name]
        prior, plan, request = prepared(config, 1)
        packed = packed_as(arguments.weights, prior, plan, request)
        draw_cpu_timed(packed, request)
        height, width = config.size
        rounds, read = [], []
        bytes_of = pixel_bytes(plan, size)
        all_bytes = mean_bytes(bytes_of)
        for _ in range(arguments.rounds):
            times = torch.zeros(height * width, len(stages), arguments.threads, 2)
            draw_cpu_timed(packed, request, times)
            rounds.append(times)
            read.append(read_seconds(bytes_of) * 1e6)
        times = torch.cat(rounds)
        length = times.sum((1, 3)).amax(1)  # of a position, us
        kept = []
        for parity in range(2):
            own = torch.arange(len(times)) % 2 == parity
            quiet = length <= length[own].quantile(arguments.keep)
            kept.append(times[own & quiet].mean(0))
        mean = torch.stack(kept).mean(0)  # [stages, threads, 2]
        rate = all_bytes / min(read)  # bytes a us
        total = mean.sum((0, 2)).amax()
        print(
            f"{name}: {total:.0f} us per position, {all_bytes / 1e6:.1f} MB of {arguments.weights} "
            f"weights; a read loop over them {min(read):.0f} us ({rate / 1e3:.0f} GB/s), "
            f"{min(read) / total:.0%}\n"
            f"| stage | work, us | longest wait, us | MB | GB/s | of its floor |\n"
            f"|---|---|---|---|---|---|"
        )
        stages_bytes = stage_bytes(plan, size, all_bytes)
        for stage, each in zip(stages, mean, strict=True):
            if each.sum() == 0:
                continue
            work, wait = each[:, 0].amax().item(), each[:, 1].amax().item()
            mine = stages_bytes.get(stage, 0.0)
            print(
                f"| {stage} | {work:.1f} | {wait:.1f} | {mine / 1e6:.2f} | {mine / work / 1e3:.0f} "
                f"| {mine / rate / work:.0%} |"
            )


if __name__ == "__main__":
    main()
