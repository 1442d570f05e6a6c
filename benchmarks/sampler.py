"""Times engine `cpu` on the port's default priors against naive sampling and the machine's
ceilings.

    python benchmarks/sampler.py [--batch 1] [--threads 2] [--weights w8a8] [--naive-rows 0]
    python benchmarks/sampler.py --threads 1 --weights float32 w8a8 --save
    python benchmarks/sampler.py --preset ffhq1024 --maps bottom --rounds 1 --naive-rows 0

One 256×256 image is 32×32 top codes (84.9 M parameters) and 64×64 bottom codes (89.8 M), float32,
with random weights, on which time does not depend; `--preset` takes the sizes of a preset's priors
in their place. In this process, the ceilings in turns with the draws and the naive sampler after
them:

- sgemm ceiling: `torch.mm` of [1024, 1280] by [1280, 1024], the best rate seen. The row phase's
  share is its live multiplications and additions per second over that.
- read ceiling: `torch.sum` over as many bytes as a step's weights, the best time seen. The pixel
  phase's shares are that time over a step's, and over a position's: where several rows are drawn at
  once, the positions of a step share a reading, and the second share may exceed 100 %. The tap at
  −2 is read at every second step, so `torch.sum` reads all bytes in one step and the rest of them
  in the next.
- naive: the full forward on rows 0..i for each code of row i, measured at some rows and summed
  (trapezium rule); its ratio to the median draw has no spread.

With one thread all times are CPU time. The engine takes those of its phases by the wall, so they
are scaled to the CPU time of their draw.

Prints the load of the machine: on a busy one only the codes mean anything.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import torch
from shared import measure
from torch import Tensor

from vqvae2_fast.models.configs import PixelSNAILConfig, level_names
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.presets import preset, preset_names
from vqvae2_fast.sampling import calibrate, interface_of, plan_of
from vqvae2_fast.sampling.engines.cpu import CpuPlan, draw_cpu_timed, packed_plan
from vqvae2_fast.sampling.request import DrawNoise, DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings

if TYPE_CHECKING:
    from vqvae2_fast.sampling.plan import SamplingPlan

COMMON = {
    "num_embeddings": 512,
    "channels": 256,
    "residual_channels": 256,
    "num_blocks": 4,
    "layers_per_block": 4,
    "kernel_size": 5,
    "mask": "exclude",
}
PRIORS = {
    "top": PixelSNAILConfig(size=(32, 32), attention=True, num_heads=8, **COMMON),
    "bottom": PixelSNAILConfig(
        size=(64, 64),
        attention=False,
        condition_sizes=((32, 32),),
        condition_channels=256,
        num_condition_layers=3,
        **COMMON,
    ),
}


# Bytes of a weight, and the contender of the results.
WEIGHTS = {"float32": 4, "w8a8": 1}
NAMES = {"float32": "ours", "w8a8": "w8a8"}


def labels_of(config: PixelSNAILConfig, batch: int) -> Tensor | None:
    return torch.zeros(batch, dtype=torch.int64) if config.num_classes else None


def request_of(config: PixelSNAILConfig, batch: int) -> DrawRequest:
    maps = [torch.randint(config.num_embeddings, (batch, *size)) for size in config.condition_sizes]
    noise = DrawNoise(batch, config.size[1], config.num_embeddings, torch.device("cpu"))
    return DrawRequest(batch, maps, labels_of(config, batch), None, noise, DrawSettings())


def prepared(config: PixelSNAILConfig, batch: int) -> tuple[PixelSNAIL, SamplingPlan, DrawRequest]:
    """A prior with random weights, its plan, and what a draw of this batch takes."""
    prior = PixelSNAIL(config).eval()
    return prior, plan_of(prior, interface_of(prior)), request_of(config, batch)


def packed_as(weights: str, prior: PixelSNAIL, plan: SamplingPlan, request: DrawRequest) -> CpuPlan:
    """A plan with these `WEIGHTS`; with w8a8, of a calibration on one map."""
    if weights == "float32":
        return packed_plan(plan)
    codes = torch.randint(plan.num_embeddings, (1, *plan.size))
    maps = [codes[:1] for codes in request.maps]
    calibrate(prior, [(codes, maps, labels_of(prior.config, 1))])
    return packed_plan(plan, prior.calibration.ranges)


def clock() -> float:
    """Seconds: of CPU time with one thread, which a busy machine disturbs little, else of wall
    time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds_of(function) -> float:
    start = clock()
    function()
    return clock() - start


def sgemm_seconds_per_flop() -> float:
    left, right = torch.randn(1024, 1280), torch.randn(1280, 1024)
    return min(seconds_of(lambda: left @ right) for _ in range(8)) / (2 * 1024 * 1280 * 1024)


def read_seconds(bytes_of: dict[int, float]) -> float:
    """Seconds in which `torch.sum` reads the bytes of a position (`pixel_bytes`), the mean over
    columns."""
    ends, total = {}, 0
    for columns in sorted(bytes_of):
        total += int(bytes_of[columns]) // 4
        ends[columns] = total
    memory, cycle = torch.zeros(total), max(ends)

    def read() -> None:
        for column in range(cycle):
            memory[: max(end for every, end in ends.items() if column % every == 0)].sum()

    return min(seconds_of(read) for _ in range(8)) / cycle


def pointwise_weights(plan: SamplingPlan) -> dict[str, int]:
    """Weights of the pixel phase's stages, except for the convolutions."""

    def count(*tensors: Tensor) -> int:
        return sum(tensor.numel() for tensor in tensors)

    found = {"head": count(plan.head)}
    if plan.merge is not None:
        found["merge"] = count(plan.merge)
    if plan.output_layers is not None:
        layers = plan.output_layers
        found["output layers"] = count(layers.conv1.current, layers.conv2.current)
    if plan.attention is not None:
        a = plan.attention
        found |= {
            "attention first": count(a.key.conv1.current, a.query.conv1.current),
            "attention second": count(a.key.conv2.current, a.query.conv2.current),
            "query, key, value": count(a.query_weight, a.key_value_weight),
            "attention out 1": count(a.out.conv1.current, a.out.auxiliary),
            "attention out 2": count(a.out.conv2.current),
        }
    return found


def pixel_bytes(plan: SamplingPlan, size: int) -> dict[int, float]:
    """Bytes of weights, `size` of each, that a step reads at every column, every second one, …"""
    found = {1: float(sum(pointwise_weights(plan).values()))}
    for conv in (plan.layers.conv1, plan.layers.conv2):
        for offset in conv.current_offsets:
            # The tap at -d serves as many columns as the largest power of two up to d.
            every = 1 << max(0, (-offset).bit_length() - 1)
            per_tap = conv.current.numel() / len(conv.current_offsets)
            found[every] = found.get(every, 0.0) + per_tap
    return {every: count * size for every, count in found.items()}


def mean_bytes(bytes_of: dict[int, float]) -> float:
    """Of a step, over a row."""
    return sum(count / every for every, count in bytes_of.items())


def row_flops(plan: SamplingPlan, batch: int) -> float:
    """Multiplications and additions of the taps above, without those that lie above the map."""
    convolutions = (plan.layers.conv1, plan.layers.conv2)
    outside = sum(range(1, convolutions[0].rows_above + 1)) / convolutions[0].rows_above
    rows = plan.size[0] - outside
    return 2 * batch * plan.size[1] * rows * sum(conv.above.numel() for conv in convolutions)


def timed_draw(plan: CpuPlan, request: DrawRequest) -> tuple[float, dict[str, float]]:
    """Seconds of a draw, and of its phases; also its steps."""
    start, wall_start = clock(), time.perf_counter()
    parts = draw_cpu_timed(plan, request)[1]
    seconds, wall = clock() - start, time.perf_counter() - wall_start
    phases = {name: parts[name] * seconds / wall for name in ("condition", "rows", "pixels")}
    return seconds, {**phases, "steps": parts["steps"]}


def timed_draws(
    name: str, plan: SamplingPlan, packed: CpuPlan, request: DrawRequest, size: int, rounds: int
) -> list[float]:
    """Seconds of the draws of a map with `size` bytes a weight, which are also reported."""
    draw_cpu_timed(packed, request)
    bytes_of = pixel_bytes(plan, size)
    num_bytes = mean_bytes(bytes_of)
    draws, flop, read = [], [sgemm_seconds_per_flop()], []
    for _ in range(rounds):
        draws.append(timed_draw(packed, request))
        flop.append(sgemm_seconds_per_flop())
        read.append(read_seconds(bytes_of))
    times = [draw[0] for draw in draws]
    seconds, parts = sorted(draws, key=lambda draw: draw[0])[rounds // 2]
    step = parts["pixels"] / parts["steps"]
    position = parts["pixels"] / (plan.size[0] * plan.size[1])
    row_rate = row_flops(plan, request.batch_size) / parts["rows"]
    print(
        f"{name}, {size} bytes a weight: {seconds:.2f} s ({min(times):.2f} to {max(times):.2f})\n"
        f"  condition {parts['condition']:.2f} s\n"
        f"  row phase {parts['rows']:.2f} s, {row_rate / 1e9:.0f} GFLOP/s, "
        f"{row_rate * min(flop):.0%} of sgemm at {1e-9 / min(flop):.0f}\n"
        f"  pixel phase {parts['pixels']:.2f} s, {position * 1e6:.0f} us per position, "
        f"{step * 1e6:.0f} per step; a read loop over a step's {num_bytes / 1e6:.1f} MB takes "
        f"{min(read) / position:.0%} and {min(read) / step:.0%} of them, at "
        f"{num_bytes / min(read) / 1e9:.0f} GB/s"
    )
    return times


def naive_rows(text: str) -> int:
    """The option `--naive-rows`."""
    number = int(text)
    if number == 1 or number < 0:
        raise argparse.ArgumentTypeError(
            f"expected 2 or more rows, or 0 for no naive sampler, got {number}: the time of an "
            "image is summed between measured rows."
        )
    return number


def add_naive_rows(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--naive-rows",
        type=naive_rows,
        default=default,
        help="2 or more; 0: do not run the naive sampler",
    )


def naive_seconds(config: PixelSNAILConfig, prior, batch: int, num_rows: int) -> float:
    height, width = config.size
    maps = [torch.zeros(batch, *size, dtype=torch.int64) for size in config.condition_sizes]
    labels = labels_of(config, batch)
    rows = sorted({round(n * (height - 1) / (num_rows - 1)) for n in range(num_rows)})
    with torch.inference_mode():
        each = []
        for row in rows:
            codes = torch.zeros(batch, row + 1, width, dtype=torch.int64)
            seconds = [seconds_of(lambda codes=codes: prior(codes, maps, labels)) for _ in range(2)]
            each.append(min(seconds))
    pairs = zip(zip(rows, each, strict=True), zip(rows[1:], each[1:], strict=True), strict=False)
    area = sum((after[0] - before[0]) * (before[1] + after[1]) / 2 for before, after in pairs)
    # The rule covers height - 1 intervals: half a row is missing at each end.
    return width * (area + (each[0] + each[-1]) / 2)


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=["float32"])
    parser.add_argument("--preset", choices=preset_names())
    parser.add_argument("--maps", nargs="+", choices=level_names(3), help="all by default")
    parser.add_argument(
        "--save", action="store_true", help="append the image's times to results/<device>.csv"
    )
    add_naive_rows(parser, default=5)
    arguments = measure.parse(parser)
    if arguments.save and (arguments.preset or arguments.maps):
        parser.error("--save: expected an image of the port's size; leave out --preset and --maps")
    priors = PRIORS
    if arguments.preset is not None:
        configs = preset(arguments.preset).priors
        priors = dict(zip(level_names(len(configs)), configs, strict=True))
    maps = arguments.maps or list(priors)
    if other := [name for name in maps if name not in priors]:
        parser.error(f"--maps: expected some of {', '.join(priors)}, got {', '.join(other)}")
    batch = arguments.batch
    print(f"{measure.machine()}, batch {batch}, {' and '.join(arguments.weights)} weights")
    images = {weights: [0.0] * arguments.rounds for weights in arguments.weights}
    naive = 0.0
    for name in (name for name in priors if name in maps):
        config = priors[name]
        prior, plan, request = prepared(config, batch)
        for weights, seconds in images.items():
            packed = packed_as(weights, prior, plan, request)
            draws = timed_draws(name, plan, packed, request, WEIGHTS[weights], arguments.rounds)
            images[weights] = [sum(pair) for pair in zip(seconds, draws, strict=True)]
        if arguments.naive_rows:
            slow = naive_seconds(config, prior, batch, arguments.naive_rows)
            naive += slow
            print(f"  naive {slow:.0f} s")
    if set(maps) != set(priors):
        return
    for weights, seconds in images.items():
        image = statistics.median(seconds)
        told = f"; naive {naive:.0f} s: {naive / image:.0f} times" if naive else ""
        print(f"{batch} image(s), {weights}: {image:.2f} s{told}")
    if arguments.save:
        others = {"naive": [naive]} if naive else {}
        save({NAMES[weights]: seconds for weights, seconds in images.items()} | others, batch)


def save(images: dict[str, list[float]], batch: int) -> None:
    """Appends the times of an image, by contender."""
    seconds = images | measure.interleave(measure.ceilings(), 3, clock)
    of_all = {
        "op": "sampler",
        "mode": "port_image",
        "shape": f"batch{batch}",
        "flops": 0,
        "traffic": 0,
        "peak_mib": float("nan"),
        "clock": "cpu" if torch.get_num_threads() == 1 else "wall",
    }
    measure.save([measure.make_row(who, seconds, owner=who, **of_all) for who in images])


if __name__ == "__main__":
    main()
