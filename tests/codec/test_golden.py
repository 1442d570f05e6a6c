"""A file that another machine wrote decodes to its codes at every SIMD level of this one.

tools/codec_golden.py made the files. .ci/aarch64 decodes them on an emulated Arm processor.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers.compare import needs_kernels, simd_level, simd_levels
from torch import Tensor

import vqvae2_fast as vq2
from vqvae2_fast import codec

GOLDEN = Path(__file__).parent / "golden"
LOWEST, *HIGHER = simd_levels()


def decoded(level: str, batch_size: int, batches: int | None = None) -> list[Tensor]:
    """The maps of the first batches, or of all."""
    pipeline, data = vq2.load(GOLDEN / "pipeline"), (GOLDEN / "codes.vq2").read_bytes()
    with simd_level(level):
        parts = codec.decode_stream(pipeline, data, batch_size=batch_size)
        maps = [found for found, _ in islice(parts, batches)]
    return [torch.cat(found) for found in zip(*maps, strict=True)]


# The scalar level takes half a minute, ten times as long as the others.
@pytest.mark.parametrize("level", [pytest.param(LOWEST, marks=pytest.mark.nightly), *HIGHER])
def test_a_file_of_another_machine_decodes(level: str) -> None:
    packed = b"".join(found.to(torch.uint8).numpy().tobytes() for found in decoded(level, 250))
    assert hashlib.sha256(packed).hexdigest() == (GOLDEN / "codes.sha256").read_text().strip()


@needs_kernels
def test_its_first_images_decode_at_the_lowest_level_as_at_the_highest() -> None:
    lowest, highest = (decoded(level, 50, batches=1) for level in (LOWEST, simd_levels()[-1]))
    assert [len(found) for found in lowest] == [50, 50]
    assert all(torch.equal(one, other) for one, other in zip(lowest, highest, strict=True))


ENCODE = """
import sys, torch, vqvae2_fast as vq2
from vqvae2_fast import codec

pipeline = vq2.from_preset("avatars64")
generator = torch.Generator().manual_seed(0)
sizes = [prior.config.size for prior in pipeline.priors]
codes = [torch.randint(500, (4, *size), generator=generator) for size in sizes]
sys.stdout.buffer.write(codec.encode_codes(pipeline, codes))
"""


@needs_kernels
def test_the_kernels_that_torch_has_for_old_processors_give_the_same_file(tmp_path: Path) -> None:
    def encoded(**environment: str) -> bytes:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ENCODE],
            env={**os.environ, **environment},
            cwd=tmp_path,  # the installed package, not the folder's
            check=True,
            stdout=subprocess.PIPE,
        )
        return done.stdout

    assert encoded(ATEN_CPU_CAPABILITY="default") == encoded()
