"""The codec: its bits next to those that the priors promise, its speed, and other compressors.

    python benchmarks/codec.py                                # pretrained emoji32, held-out emoji
    python benchmarks/codec.py --pipeline P --codes codes/held_out    # any pipeline, a store

Bits: compares Σ −log₂ p of all codes, by `score_codes`, with the payload; its rounding and its
lengths are shown separately. Speed: `encode_codes`, `decode_codes` and `sample_codes` of the same
maps, in turns. Stores: the records as the packed code store, xz and (if zstandard is installed)
zstd -19 keep them.
"""

from __future__ import annotations

import argparse
import lzma
import math
import statistics
from importlib.util import find_spec

import measure
import numpy as np
import torch
from torch import Tensor

import vqvae2_fast as vq2
from vqvae2_fast import codec
from vqvae2_fast.data import CodeStore, in_order, load_emoji
from vqvae2_fast.data.code_layout import CodeLayout
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.sampling import score_codes
from vqvae2_fast.sampling.pipeline import Pipeline, sample_levels


def emoji_codes(pipeline: Pipeline) -> tuple[list[Tensor], Tensor]:
    parts, labels = [], []
    with torch.no_grad():
        for images, found in in_order(load_emoji("held_out"), 64):
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


def print_speed(
    pipeline: Pipeline,
    codes: list[Tensor],
    labels: Tensor | None,
    batches: list[int],
    rounds: int,
) -> None:
    positions = sum(maps[0].numel() for maps in codes)
    columns = "batch encode,_images/s decode,_images/s µs_a_code decode/sample encode/decode"
    print(f"| {' | '.join(columns.split()).replace('_', ' ')} |")
    print("|---|---|---|---|---|---|")
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
        )
        median = {name: statistics.median(values) for name, values in seconds.items()}
        decode, low, high = measure.ratio(seconds["sample"], seconds["decode"])
        encode, below, above = measure.ratio(seconds["decode"], seconds["encode"])
        print(
            f"| {batch} | {batch / median['encode']:.1f} | {batch / median['decode']:.1f} | "
            f"{1e6 * median['decode'] / batch / positions:.2f} | "
            f"{decode:.2f} ({low:.2f} to {high:.2f}) | {encode:.1f} ({below:.1f} to {above:.1f}) |"
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", help="folder of a pipeline; without it emoji32")
    parser.add_argument("--codes", help="code store of its VQ-VAE, with --pipeline")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{measure.device_name()}, {options.threads} threads, {measure.versions()}\n")
    labels: Tensor | None
    if options.pipeline:
        pipeline, store = vq2.load(options.pipeline), CodeStore(options.codes)
        codes, labels = store.batch(torch.arange(len(store)))
        labels = labels if pipeline.num_classes and bool((labels >= 0).all()) else None
    else:
        pipeline = vq2.from_preset("emoji32")
        codes, labels = emoji_codes(pipeline)
    print_bits(pipeline, codes, labels)
    print_stores(pipeline, codes, labels)
    print_speed(pipeline, codes, labels, options.batches, options.rounds)


if __name__ == "__main__":
    main()
