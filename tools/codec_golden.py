"""Makes tests/codec/golden: a small pipeline, and a file that every machine must decode alike.

    python tools/codec_golden.py tests/codec/golden                 # again, for a new format
    python tools/codec_golden.py tests/codec/golden --dump DIR      # for csrc/tests/codec_test.cpp

The dump is for processors without Python: per level the packed plan, the streams, the coarser maps
and labels, and the codes that must come out.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import vqvae2_fast as vq2
from vqvae2_fast import codec
from vqvae2_fast.codec.bitstream import read_segments
from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.sampling.engines.cpu import packed_plan
from vqvae2_fast.sampling.engines.cpu_pack import described_plan
from vqvae2_fast.sampling.pipeline import sample_levels
from vqvae2_fast.sampling.prior import interface_of, plan_of

CLASSES, IMAGES, SEGMENT = 3, 1000, 250


def pipeline() -> vq2.Pipeline:
    """Two levels with every kind of layer, whose weights bfloat16 holds exactly."""
    torch.manual_seed(0)
    vqvae = vq2.VQVAE2(
        VQVAE2Config(
            image_size=(16, 16),
            strides=(2, 2),
            hidden_channels=8,
            residual_channels=4,
            num_embeddings=19,
            embedding_dim=4,
        )
    )
    vqvae(torch.rand(64, 3, 16, 16) * 2 - 1)
    priors = []
    for level, size in enumerate(((4, 4), (8, 8))):
        prior = vq2.PixelSNAIL(
            PixelSNAILConfig(
                size=size,
                num_embeddings=19,
                channels=8,
                residual_channels=8,
                num_blocks=2,
                layers_per_block=1,
                kernel_size=3,
                num_heads=1,
                num_output_layers=1,
                condition_sizes=((4, 4),)[:level],
                condition_channels=4,
                num_condition_layers=1,
                num_classes=CLASSES,
            )
        )
        with torch.no_grad():
            for weight in prior.parameters():  # away from the start, where all codes are alike
                weight.add_(0.3 * torch.randn_like(weight))
        priors.append(prior)
    return vq2.Pipeline(vqvae.eval(), [prior.eval() for prior in priors])


def make(out: Path) -> None:
    vq2.save(pipeline(), out / "pipeline", dtype=torch.bfloat16)
    loaded = vq2.load(out / "pipeline")
    labels = torch.arange(IMAGES) % (CLASSES + 1)
    maps = sample_levels(loaded, IMAGES, labels=labels, seed=1)
    assert isinstance(maps, list)
    batches = zip(
        zip(*[level.split(SEGMENT) for level in maps], strict=True),
        labels.split(SEGMENT),
        strict=True,
    )
    (out / "codes.vq2").write_bytes(b"".join(codec.encode_stream(loaded, batches)))
    (out / "codes.sha256").write_text(digest(maps) + "\n")


def digest(maps: list[Tensor]) -> str:
    """SHA-256 of all codes, one byte each, level after level."""
    packed = b"".join(level.to(torch.uint8).numpy().tobytes() for level in maps)
    return hashlib.sha256(packed).hexdigest()


def dump(golden: Path, out: Path) -> None:
    loaded = vq2.load(golden / "pipeline")
    segments = list(read_segments((golden / "codes.vq2").read_bytes()))
    maps = codec.decode_codes(loaded, (golden / "codes.vq2").read_bytes())
    labels = torch.cat([torch.tensor(segment.labels) for segment in segments])
    for level, prior in enumerate(loaded.priors):
        plan = plan_of(prior, interface_of(prior))
        described, made = described_plan(plan), packed_plan(plan).packed
        with (out / f"level{level}.dump").open("wb") as file:
            write_numbers(file, len(described.integers), len(described.sizes))
            for name, value in described.integers.items():
                write_name(file, name)
                write_array(file, torch.tensor(value if isinstance(value, list) else [value]))
            for name, size in described.sizes.items():
                write_name(file, name)
                words = made.memory(name) if size else bytearray()
                write_array(file, torch.from_numpy(np.frombuffer(words, np.float32)))
            write_numbers(file, len(maps[level]), level)
            for array in (labels, *maps[: level + 1]):
                write_array(file, array)
            for segment in segments:
                for stream in segment.streams[level]:
                    write_array(file, torch.from_numpy(np.frombuffer(stream, np.int32).copy()))


def write_numbers(file, *numbers: int) -> None:
    file.write(struct.pack(f"<{len(numbers)}q", *numbers))


def write_name(file, name: str) -> None:
    write_numbers(file, len(name))
    file.write(name.encode())


def write_array(file, values: Tensor) -> None:
    write_numbers(file, values.numel())
    file.write(values.contiguous().numpy().tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("golden", type=Path)
    parser.add_argument("--dump", type=Path)
    options = parser.parse_args()
    if options.dump is None:
        make(options.golden)
    else:
        dump(options.golden, options.dump)
