"""Encodes and decodes at every SIMD level, on one and two threads, one image and 64 at a time.

    python tools/codec_levels.py                              # the golden pipeline, 1,000 images
    python tools/codec_levels.py --pipeline P --codes STORE   # any pipeline, a store of its codes
    python tools/codec_levels.py --preset emoji32             # codes drawn from it

Every level must write the same bytes, and must decode them to the same codes in every way. Prints
one line for each; ends with 1 if any of them differs. NEON: csrc/tests/codec_test.cpp --all.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

import vqvae2_fast as vq2
from vqvae2_fast import codec
from vqvae2_fast.data import CodeStore
from vqvae2_fast.sampling.pipeline import sample_levels

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.compare import simd_level, simd_levels  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "tests" / "codec" / "golden"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, default=GOLDEN / "pipeline")
    parser.add_argument("--preset", help="a pretrained pipeline, in place of --pipeline")
    parser.add_argument("--codes", type=Path, help="a code store; without it they are drawn")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--levels", nargs="+", default=list(simd_levels()))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    pipeline = vq2.from_preset(options.preset) if options.preset else vq2.load(options.pipeline)
    labels = torch.arange(options.images) % max(1, pipeline.num_classes)
    told = labels if pipeline.num_classes else None
    if options.codes is not None:
        store = CodeStore(options.codes)
        codes, found = store.batch(torch.arange(min(options.images, len(store))))
        told = found if pipeline.num_classes else None
    else:
        codes = sample_levels(pipeline, options.images, labels=told, seed=1)
    written, failures = b"", 0
    for level in options.levels:
        for threads in options.threads:
            torch.set_num_threads(threads)
            with simd_level(level):
                data = codec.encode_codes(pipeline, codes, labels=told)
                written = written or data
                failures += report(f"{level} encode, {threads} threads", data == written)
                for batch in (1, 64):
                    begun = time.process_time()
                    parts = [
                        maps for maps, _ in codec.decode_stream(pipeline, written, batch_size=batch)
                    ]
                    whole = [torch.cat(maps) for maps in zip(*parts, strict=True)]
                    equal = all(map(torch.equal, whole, codes))
                    seconds = time.process_time() - begun
                    text = f"{level} decode, {threads} threads, {batch} at a time, {seconds:.1f} s"
                    failures += report(text, equal)
    print(
        f"{len(codes[0])} images, {sum(maps.numel() for maps in codes)} codes: {failures} failures"
    )
    return 1 if failures else 0


def report(text: str, equal: bool) -> int:
    print(f"{text}: {'equal' if equal else 'DIFFERENT'}", flush=True)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
