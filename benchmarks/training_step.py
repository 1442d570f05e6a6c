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

Contenders: `port` is `plain_port.py`, the port's arithmetic in plain PyTorch (the port is not on a
registry), `drop_in` our modules under its names, `reference` our model with every operator its
PyTorch reference, `compiled` the same with its loss through torch.compile, `rounded` ours with the
factors of 3×3 convolutions rounded to bfloat16, which differs where there is AMX.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from contextlib import ExitStack, contextmanager
from unittest import mock

import measure
import plain_port
import torch
import torch.nn.functional as F
from peak_memory import numbers_of, resident, rise_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vqvae2_fast as vq2
from vqvae2_fast.compat import rosinality
from vqvae2_fast.ops._registry import BY_DESIGN, OPERATORS
from vqvae2_fast.ops._training import rounded_convolutions
from vqvae2_fast.presets import preset

# Arguments of the port's PixelSNAIL, and of ours if it is not converted from the port's.
PRIORS = {
    # `train_pixelsnail.py --hier top` with its defaults.
    "port_top": (4, ([32, 32], 512, 256, 5, 4, 4, 256), {}, None),
    "port_top_small": (2, ([16, 16], 512, 64, 5, 2, 2, 64), {}, None),
    "emoji64_top": (32, ([8, 8], 512, 64, 3, 2, 2, 64), {}, 0),
    "emoji64_bottom": (
        32,
        ([16, 16], 512, 64, 3, 2, 2, 64),
        {"attention": False, "n_cond_res_block": 2, "cond_res_channel": 64},
        1,
    ),
}
VQVAES = {"imagenet256_vqvae": (4, "imagenet256"), "emoji64_vqvae": (32, "emoji64")}
DEFAULT_STEPS = ["emoji64_top", "emoji64_bottom", "imagenet256_vqvae", "port_top"]
OTHERS = ("port", "drop_in", "reference", "compiled", "rounded")
# Rounds that keep the whole run under ten minutes on two cores.
ROUNDS = {"port_top": 3, "imagenet256_vqvae": 5}


@contextmanager
def references():
    """Runs every operator on its PyTorch reference, whatever the install has."""
    with ExitStack() as patches:
        for operator in OPERATORS.values():
            patches.enter_context(mock.patch.object(operator, "choose", lambda *args: BY_DESIGN))
        yield


class Step:
    """One contender: `run` is a whole training step."""

    def __init__(self, model: nn.Module, loss, after=lambda: None, *, fused: bool = False) -> None:
        self.model, self.loss, self.after = model.train(), loss, after
        self.optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, fused=fused)

    def run(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.model).backward()
        self.optimizer.step()
        self.after()


class ReferenceStep(Step):
    def run(self) -> None:
        with references():
            super().run()


class RoundedStep(Step):
    """In the precision that `auto` gives a prior on a processor."""

    def run(self) -> None:
        with rounded_convolutions():
            super().run()


def prior_step(name: str, contender: str) -> Step:
    batch, arguments, keywords, level = PRIORS[name]
    torch.manual_seed(0)
    (height, width), num_codes = arguments[:2]
    codes = torch.randint(num_codes, (batch, height, width))
    condition = None
    if "n_cond_res_block" in keywords:
        condition = torch.randint(num_codes, (batch, height // 2, width // 2))
    if contender in ("port", "drop_in"):
        kind = plain_port.PixelSNAIL if contender == "port" else rosinality.PixelSNAIL
        model = kind(*arguments, **keywords)
        return Step(model, lambda model: F.cross_entropy(model(codes, condition)[0], codes))
    labels = None
    if level is None:
        model = rosinality.to_native(rosinality.PixelSNAIL(*arguments, **keywords))
    else:
        config = preset("emoji64").priors[level]
        model = vq2.PixelSNAIL(config)
        labels = torch.randint(config.num_classes, (batch,))

    def loss(model: nn.Module) -> Tensor:
        if contender in ("ours", "rounded"):
            return model.loss(codes, condition, labels)
        return F.cross_entropy(model(codes, condition, labels), codes)

    return our_step(contender, model, loss)


def our_step(contender: str, model: nn.Module, loss, after=lambda: None) -> Step:
    if contender in ("ours", "rounded"):
        kind = RoundedStep if contender == "rounded" else Step
        return kind(model, loss, after, fused=True)
    step = ReferenceStep(model, loss, after, fused=True)
    if contender == "compiled":
        step.loss = torch.compile(loss)
    return step


def vqvae_step(name: str, contender: str) -> Step:
    batch, preset_name = VQVAES[name]
    config = preset(preset_name).vqvae
    torch.manual_seed(0)
    images = torch.rand(batch, config.image_channels, *config.image_size) * 2 - 1
    if contender in ("port", "drop_in"):
        kind = plain_port.VQVAE if contender == "port" else rosinality.VQVAE
        model = kind(
            config.image_channels,
            config.hidden_channels,
            config.num_residual_blocks,
            config.residual_channels,
            config.embedding_dim,
            config.num_embeddings,
        )

        def port_loss(model: nn.Module) -> Tensor:
            out, diff = model(images)
            return F.mse_loss(out, images) + 0.25 * diff.mean()

        return Step(model, port_loss)
    # As `training/stage1.py` prepares both.
    model = vq2.VQVAE2(config).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)

    def loss(run: nn.Module) -> Tensor:
        return model.loss(images, run(images))

    return our_step(contender, model, loss, model.update_codebooks_)


def make_step(name: str, contender: str) -> Step:
    return (prior_step if name in PRIORS else vqvae_step)(name, contender)


def contenders_of(name: str, wanted: list[str]) -> list[str]:
    if not wanted:
        wanted = ["port", "compiled"] if name in PRIORS else ["port"]
    return ["ours", *(contender for contender in OTHERS if contender in wanted)]


def flops_of(name: str) -> int:
    """Flops of the reference's step: products of its convolutions and matrices, dead taps
    included."""
    step = make_step(name, "reference")
    step.model.eval()  # the same products; the reference takes minutes to draw dropout
    with FlopCounterMode(display=False) as counter:
        step.run()
    return counter.get_total_flops()


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
