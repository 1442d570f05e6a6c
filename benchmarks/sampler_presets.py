"""How long `sample_images` takes with each packaged pipeline, in a loop, as programs call it.

    python benchmarks/sampler_presets.py [--presets emoji32] [--batches 1 16 64] [--rounds 60]

Prints medians with the 20th and 80th percentiles, of a whole call and for each of its images. There
is no pause between calls, so that OpenMP's threads still wait actively when the next one begins.
"""

from __future__ import annotations

import time

import torch
from shared import measure

from vqvae2_fast import from_preset, sample_images
from vqvae2_fast.checkpoints.pretrained import pretrained_names


def main() -> None:
    parser = measure.parser(__doc__, rounds=60)
    names = pretrained_names()
    parser.add_argument("--presets", nargs="+", choices=names, default=names)
    parser.add_argument("--batches", nargs="+", type=measure.count, default=[1, 16, 64])
    options = measure.parse(parser)
    print(measure.machine())
    print("| preset | images | a call, ms | an image, ms |\n|---|---|---|---|")
    for name in options.presets:
        pipeline = from_preset(name)
        for batch in options.batches:
            labels = torch.arange(batch) % pipeline.num_classes if pipeline.num_classes else None
            seconds = []
            for seed in range(options.rounds + 1):
                start = time.perf_counter()
                sample_images(pipeline, batch, seed=seed, labels=labels)
                seconds.append(time.perf_counter() - start)
            # The first call packs the weights.
            times = 1e3 * torch.tensor(seconds[1:])
            low, median, high = times.quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
            print(
                f"| {name} | {batch} | {median:.1f} ({low:.1f} to {high:.1f}) "
                f"| {median / batch:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
