"""The codec: its bits next to those that the priors promise, its speed, and other compressors.

    python benchmarks/codec.py                                # pretrained emoji32, held-out emoji
    python benchmarks/codec.py --pipeline P --codes codes/held_out    # any pipeline, a store
    python benchmarks/codec.py --port --batches 1 8 --rounds 3        # speed of the port's priors

Bits: compares Σ −log₂ p of all codes, by `score_codes`, with the payload; its rounding and its
lengths are shown separately. Speed: `encode_codes`, `decode_codes` and `sample_codes` of the same
maps, in turns. "At most" is how many times as fast as decoding an encoder would be that did all of
its multiplications and additions at the rate of the row phase, whose products are the widest.
Stores: the records as the packed code store, xz and (if zstandard is installed) zstd -19 keep them.
"""

from __future__ import annotations

import lzma
import math
import statistics
from dataclasses import fields, is_dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from sampler import PRIORS, request_of, row_flops
from shared import measure
from torch import Tensor

import vqvae2_fast as vq2
from vqvae2_fast import codec
from vqvae2_fast.data import CodeStore, in_order, load_emoji
from vqvae2_fast.data.code_format import CodeLayout
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.sampling import score_codes
from vqvae2_fast.sampling.engines.cpu import draw_cpu_timed, packed_plan
from vqvae2_fast.sampling.pipeline import Pipeline, sample_levels
from vqvae2_fast.sampling.prior import interface_of, plan_of


def emoji_codes(pipeline: Pipeline) -> tuple[list[Tensor], Tensor]:
    parts, labels = [], []
    with torch.no_grad():
        for images, found in in_order(load_emoji("held_out", subcategories=True), 64):
            parts.append(pipeline.vqvae.encode(images))
            labels.append(found)
    return [torch.cat(maps) for maps in zip(*parts, strict=True)], torch.cat(labels)


def print_bits(pipeline: Pipeline, codes: list[Tensor], labels: Tensor | None) -> None:
    data = codec.encode_codes(pipeline, codes, labels=labels)
    found, images = codec.describe(data), len(codes[0])
    told = labels
    if told is None and pipeline.num_classes:
        told = torch.full((images,), pipeline.num_classes)
    print("| level | promised, bits per image | written | more | more, bits per image |")
    print("|---|---|---|---|---|")
    for level, name in enumerate(level_names(len(codes))):
        nats = 0.0
        for part in torch.arange(images).split(64):
            scores = score_codes(
                pipeline.priors[level],
                codes[level][part],
                [maps[part] for maps in codes[:level]],
                None if told is None else told[part],
            )
            nats -= scores.double().sum().item()
        promised, written = nats / math.log(2), found.payload_bits[level]
        more = (written - promised) / images
        print(
            f"| {name} | {promised / images:.2f} | {written / images:.2f} | "
            f"{written / promised - 1:+.3%} | {more:+.2f} |"
        )
    print(f"header, lengths, labels: {8 * found.overhead_bytes / images:.2f} bits per image")
    print(f"file: {len(data)} bytes, {8 * len(data) / images:.1f} bits per image\n")


def flops_per_image(prior: torch.nn.Module) -> float:
    """Multiplications and additions of all matrices for one map, counted twice together."""
    plan = plan_of(prior, interface_of(prior))
    positions = math.prod(plan.size)

    def weights(value: object) -> int:
        if isinstance(value, Tensor):
            return value.numel()
        if isinstance(value, tuple):
            return sum(map(weights, value))
        if not is_dataclass(value):
            return 0
        return sum(weights(getattr(value, field.name)) for field in fields(value))

    convolutions = (plan.layers.conv1, plan.layers.conv2)
    parts = (plan.attention, plan.merge, plan.output_layers, plan.head)
    each = sum(conv.current.numel() for conv in convolutions)
    each += sum(weights(part) for part in parts if part is not None)
    total = row_flops(plan, 1) + 2 * positions * each
    if plan.attention is not None:
        # Keys and values of the positions before, which are half of them on average.
        total += 2 * positions**2 * plan.attention.query_bias.numel()
    if plan.condition is not None:
        coarse = positions // math.prod(plan.condition.scale)
        kernels = plan.condition.conv1.kernels + plan.condition.conv2.kernels
        kernels += plan.layers.condition.kernels
        total += 2 * coarse * sum(kernel.numel() for kernel in kernels)
    return total


def row_rate(prior: torch.nn.Module, codes: list[Tensor]) -> float:
    """The highest rate of the row phase in a few draws of one map, FLOP per second."""
    plan = plan_of(prior, interface_of(prior))
    request = request_of(prior.config, 1)
    request = replace(request, maps=[maps[:1] for maps in codes[:-1]])
    if prior.config.num_classes:
        request = replace(request, labels=torch.zeros(1, dtype=torch.int64))
    packed = packed_plan(plan)
    return max(row_flops(plan, 1) / draw_cpu_timed(packed, request)[1]["rows"] for _ in range(20))


def print_speed(
    pipeline: Pipeline,
    codes: list[Tensor],
    labels: Tensor | None,
    batches: list[int],
    rounds: int,
    clock: measure.Clock,
) -> None:
    positions = sum(maps[0].numel() for maps in codes)
    flops = sum(map(flops_per_image, pipeline.priors))
    peak = row_rate(pipeline.priors[-1], codes) / 1e9
    columns = (
        "batch encode,_images/s decode,_images/s µs_a_code decode/sample encode/decode at_most "
        "GFLOP/s_of_encode,_decode,_row_phase"
    )
    print(f"| {' | '.join(columns.split()).replace('_', ' ')} |")
    print("|---|---|---|---|---|---|---|---|")
    for batch in batches:
        maps = [level[:batch] for level in codes]
        told = None if labels is None else labels[:batch]
        if told is None and pipeline.num_classes:
            told = torch.full((batch,), pipeline.num_classes)
        data = codec.encode_codes(pipeline, maps, labels=told)
        seconds = measure.interleave(
            {
                "encode": lambda m=maps, t=told: codec.encode_codes(pipeline, m, labels=t),
                "decode": lambda d=data: codec.decode_codes(pipeline, d),
                "sample": lambda b=batch, t=told: sample_levels(pipeline, b, labels=t),
            },
            rounds,
            clock,
        )
        median = {name: statistics.median(values) for name, values in seconds.items()}
        decode, low, high = measure.ratio(seconds["sample"], seconds["decode"])
        encode, below, above = measure.ratio(seconds["decode"], seconds["encode"])
        rates = [flops * batch / median[name] / 1e9 for name in ("encode", "decode")]
        print(
            f"| {batch} | {batch / median['encode']:.1f} | {batch / median['decode']:.1f} | "
            f"{1e6 * median['decode'] / batch / positions:.2f} | "
            f"{decode:.2f} ({low:.2f} to {high:.2f}) | {encode:.2f} ({below:.2f} to {above:.2f}) | "
            f"{peak / rates[1]:.2f} | {rates[0]:.0f}, {rates[1]:.0f}, {peak:.0f} |"
        )
    print()


def print_stores(pipeline: Pipeline, codes: list[Tensor], labels: Tensor | None) -> None:
    images, num_embeddings = len(codes[0]), pipeline.vqvae.config.num_embeddings
    layout = CodeLayout(num_embeddings, tuple(tuple(maps.shape[1:]) for maps in codes))
    kind = np.uint8 if num_embeddings <= 256 else np.uint16
    # One or two bytes per code, which suits general compressors, level after level.
    plain = b"".join(maps.numpy().astype(kind).tobytes() for maps in codes)
    sizes = {
        "packed code store": layout.record_bytes * images,
        "xz -9e of codes": len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)),
        "this codec": len(codec.encode_codes(pipeline, codes, labels=labels)),
    }
    if find_spec("zstandard"):
        import zstandard

        sizes["zstd -19 of codes"] = len(zstandard.ZstdCompressor(level=19).compress(plain))
    print("| kept as | bytes per image |\n|---|---|")
    for name, size in sizes.items():
        print(f"| {name} | {size / images:.1f} |")
    print()


def main() -> None:
    parser = measure.parser(__doc__, rounds=7)
    measure.add_clock(parser)
    parser.add_argument("--pipeline", help="folder of a pipeline; without it emoji32")
    parser.add_argument("--codes", help="code store of its VQ-VAE, with --pipeline")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--port", action="store_true", help="random priors of the port's size")
    parser.add_argument("--only", choices=["bits", "stores", "speed"])
    options = measure.parse(parser)
    if bool(options.pipeline) != bool(options.codes):
        parser.error("--pipeline and --codes: expected both, or neither for emoji32")
    if options.port and (options.pipeline or options.only not in (None, "speed")):
        parser.error("--port: random priors have only a speed; leave out --pipeline and --only")
    print(f"{measure.machine()}\n")
    labels: Tensor | None
    if options.port:
        priors = [vq2.PixelSNAIL(config).eval() for config in PRIORS.values()]
        vqvae = vq2.VQVAE2(vq2.preset("photos256").vqvae).eval()
        pipeline, labels = Pipeline(vqvae, priors), None
        batch = max(options.batches)
        codes = [torch.randint(512, (batch, *prior.config.size)) for prior in priors]
        options.only = "speed"
    elif options.pipeline:
        pipeline, store = vq2.load(options.pipeline), CodeStore(options.codes)
        codes, labels = store.batch(torch.arange(len(store)))
        labels = labels if pipeline.num_classes and bool((labels >= 0).all()) else None
    else:
        pipeline = vq2.from_preset("emoji32")
        codes, labels = emoji_codes(pipeline)
    if max(options.batches) > len(codes[0]) and options.only in (None, "speed"):
        parser.error(f"--batches: expected at most {len(codes[0])}, the number of images")
    if options.only in (None, "bits"):
        print_bits(pipeline, codes, labels)
    if options.only in (None, "stores"):
        print_stores(pipeline, codes, labels)
    if options.only in (None, "speed"):
        clock = measure.CLOCKS[options.clock]
        print_speed(pipeline, codes, labels, options.batches, options.rounds, clock)


if __name__ == "__main__":
    main()
