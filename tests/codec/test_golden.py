"""A file that another machine wrote decodes to its codes at every SIMD level of this one.

tools/codec_golden.py made the files. .ci/aarch64 decodes them on an emulated Arm processor.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import vqvae2_fast as vq2
from vqvae2_fast import codec
from vqvae2_fast.testing.compare import simd_level, simd_levels

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("level", simd_levels())
def test_a_file_of_another_machine_decodes(level: str) -> None:
    pipeline, data = vq2.load(GOLDEN / "pipeline"), (GOLDEN / "codes.vq2").read_bytes()
    with simd_level(level):
        parts = list(codec.decode_stream(pipeline, data, batch_size=250))
    maps = [torch.cat(found) for found in zip(*[codes for codes, _ in parts], strict=True)]
    packed = b"".join(found.to(torch.uint8).numpy().tobytes() for found in maps)
    assert hashlib.sha256(packed).hexdigest() == (GOLDEN / "codes.sha256").read_text().strip()
