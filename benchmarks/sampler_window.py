"""Several codes per step (`window`): how many are kept, and what a step costs and gains.

    python benchmarks/sampler_window.py [--pipeline emoji32] [--windows 1 2 4 8 16] [--port]
    python benchmarks/sampler_window.py --device cuda    # engine `cuda` in place of `cpu`

The batch is 1. For trained priors, the windows of a map are drawn in turns, with the same samples
for all. Steps are counted over all samples; times are medians, of CPU time with one thread, which a
busy machine disturbs little, and otherwise (also on a GPU) of wall time; ratios to window 1, which
has to come first, are those of medians, without their spread. Window 1 of engine `cpu` draws
several rows at once where a prior has no attention, so its steps have several codes; wider windows
do not.

`--port` adds the cost of a step of the port's default priors. It uses the first row of each map, so
there is hardly any row phase, and random weights, on which the number of codes kept depends but
time does not. For the top map, the gain of a window follows from that cost and from the codes that
a trained prior keeps; there is no trained prior of that size to measure it. The bottom is compared
with one row at a time there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sampler import PRIORS, clock, request_of
from shared.measure import count, machine

import vqvae2_fast
from vqvae2_fast.sampling import interface_of, plan_of
from vqvae2_fast.sampling.engines.cpu import draw_cpu_timed
from vqvae2_fast.sampling.engines.cuda import draw_cuda
from vqvae2_fast.sampling.noise import DrawNoise
from vqvae2_fast.sampling.request import DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vqvae2_fast.sampling import SamplingPlan

HEADER = (
    "| window | ms per draw | times window 1 | codes per step | us per step | steps of window 1 |\n"
    "|---|---|---|---|---|---|"
)


def sample_requests(
    plan: SamplingPlan, maps: Sequence[Sequence[Tensor]], samples: int, temperature: float
) -> list[DrawRequest]:
    """A request of batch 1 for each sample, with the classes in turn; maps[n] condition sample
    n."""
    requests = []
    for n in range(samples):
        noise = DrawNoise(1, plan.size[1], plan.num_embeddings, plan.device, first_sample=n)
        labels = None
        if plan.num_classes:
            labels = torch.tensor([n % plan.num_classes], device=plan.device)
        settings = DrawSettings(temperature)
        requests.append(DrawRequest(1, list(maps[n]), labels, None, noise, settings))
    return requests


def draw(plan: SamplingPlan, request: DrawRequest) -> tuple[Tensor, float, float]:
    """Draws; returns codes, steps and seconds."""
    if plan.device.type == "cpu":
        start = clock()
        drawn, parts = draw_cpu_timed(plan, request)
        return drawn.codes, parts["steps"], clock() - start
    counted = torch.zeros(1, dtype=torch.int64, device=plan.device)
    torch.cuda.synchronize()
    start = time.perf_counter()
    drawn = draw_cuda(plan, request, steps=counted)
    steps = int(counted)  # waits for the draw
    seconds = time.perf_counter() - start
    # Without windows steps are not counted: one per code.
    return drawn.codes, plan.size[0] * plan.size[1] if request.window == 1 else steps, seconds


def measure(
    plan: SamplingPlan, requests: list[DrawRequest], windows: Sequence[int], rounds: int
) -> list[Tensor]:
    """Prints one line per window; returns the codes of each request."""
    seconds: dict[int, list[float]] = {window: [] for window in windows}
    steps = dict.fromkeys(windows, 0.0)
    codes = []
    for n, request in enumerate(requests * rounds):
        for window in windows:
            settings = replace(request.settings, window=window)
            drawn, own_steps, own_seconds = draw(plan, replace(request, settings=settings))
            seconds[window].append(own_seconds)
            steps[window] += own_steps
            if window == windows[0]:
                expected = drawn
            elif not torch.equal(drawn, expected):
                raise SystemExit(f"window {window} drew other codes.")
        if n < len(requests):
            codes.append(expected)
    draws = len(requests) * rounds
    whole = {window: statistics.median(values) for window, values in seconds.items()}
    step = {window: whole[window] * draws / steps[window] for window in windows}
    first = windows[0]
    for window in windows:
        kept = plan.size[0] * plan.size[1] * draws / steps[window]
        print(
            f"| {window} | {whole[window] * 1e3:.2f} | {whole[first] / whole[window]:.2f} "
            f"| {kept:.2f} | {step[window] * 1e6:.1f} | {step[window] / step[first]:.2f} |"
        )
    return codes


def measure_pipeline(name: str, arguments: argparse.Namespace) -> None:
    path = Path(name)
    pipeline = vqvae2_fast.load(path) if path.exists() else vqvae2_fast.from_preset(name)
    maps: list[list[Tensor]] = [[] for _ in range(arguments.samples)]
    for level, prior in enumerate(pipeline.priors):
        prior.eval().to(arguments.device)
        plan = plan_of(prior, interface_of(prior))
        requests = sample_requests(plan, maps, arguments.samples, arguments.temperature)
        size = "x".join(map(str, plan.size))
        print(f"\n{name}, level {level}, {size}, temperature {arguments.temperature}\n{HEADER}")
        for sample, codes in zip(
            maps, measure(plan, requests, arguments.windows, arguments.rounds), strict=True
        ):
            sample.append(codes)


def measure_port(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    for name, config in PRIORS.items():
        first_row = replace(config, size=(1, config.size[1]), condition_sizes=())
        prior = vqvae2_fast.PixelSNAIL(first_row).eval().to(arguments.device)
        plan = plan_of(prior, interface_of(prior))
        print(f"\nport's {name}, first row, untrained: only for the cost of a step\n{HEADER}")
        request = request_of(first_row, 1)
        request = replace(request, noise=replace(request.noise, device=plan.device))
        measure(plan, [request], arguments.windows, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", nargs="*", default=["emoji32"], help="preset or folder")
    parser.add_argument("--windows", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8, 16])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--threads", type=count, nargs="+", default=[1, 2])
    parser.add_argument("--port", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.windows[0] != 1:
        parser.error(f"--windows: expected 1 first, to compare with, got {arguments.windows}")
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"\n{machine()}, device {device}")
        for name in arguments.pipeline:
            measure_pipeline(name, arguments)
        if arguments.port:
            measure_port(arguments)


if __name__ == "__main__":
    main()
