"""Engine `cuda` on a GPU: the port's default priors, one image and many, against captured `eager`.

    python benchmarks/gpu_sampler.py [--rounds 5] [--batches 1 8 64 128] [--save]
    python benchmarks/gpu_sampler.py --plan h100 [--window 1]    # what is expected; needs no GPU

One 256×256 image is 32×32 top and 64×64 bottom codes, with random weights, on which time does not
depend. Engines draw in turns in one process; ratios are those of medians. `eager` replays the
graphs that its first draw of a batch size captured. One sample is drawn at every batch size and
must always be the same.
"""

from __future__ import annotations

import argparse
import statistics
from datetime import date

import measure
import numpy as np
import torch
from gpu import clock, save
from sampler import PRIORS

from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.sampling import sample_codes
from vqvae2_fast.sampling.engines.cuda import PRECISIONS, THREADS, Card, plan_values
from vqvae2_fast.sampling.engines.cuda_library import native_library
from vqvae2_fast.sampling.pixelsnail import pixelsnail_plan

ENGINES = (*PRECISIONS, "eager")
IMAGES = 50_000


def plans(card: str, batches: list[int], window: int) -> None:
    nowhere = Card(blocks=0, shared_bytes=0, threads=THREADS)  # the card's name sets the size
    for level, config in PRIORS.items():
        with torch.device("meta"), torch.no_grad():
            plan = pixelsnail_plan(PixelSNAIL(config))
        for engine, precision in PRECISIONS.items():
            for batch in batches:
                values = plan_values(plan, nowhere, precision, batch, guided=False)
                values["window"] = window
                print(f"{level}, engine {engine}")
                print(native_library().report(values, card))


def draw(priors: dict[str, PixelSNAIL], batch: int, engine: str, first: int = 0) -> torch.Tensor:
    """Codes of the bottom level; both maps are drawn."""
    top = sample_codes(priors["top"], batch, first_sample=first, engine=engine)
    return sample_codes(
        priors["bottom"], batch, condition=top, first_sample=first, stream=1, engine=engine
    )


def check_batches(priors: dict[str, PixelSNAIL], batches: list[int]) -> None:
    for engine in PRECISIONS:
        alone = draw(priors, 1, engine)
        for batch in batches:
            if not torch.equal(draw(priors, batch, engine)[:1], alone):
                raise SystemExit(f"engine {engine}: sample 0 differs at batch {batch}.")


def measured(priors: dict[str, PixelSNAIL], batch: int, rounds: int) -> list[dict[str, object]]:
    runs = {name: lambda name=name: draw(priors, batch, name) for name in ENGINES}
    for run in runs.values():
        run()  # weights are packed, libraries set up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        rate = batch / median
        ratio = statistics.median(seconds["eager"]) / median
        print(
            f"batch {batch:4} {name:14} {median:8.3f} s, {rate:8.2f} images/s, "
            f"{IMAGES} in {IMAGES / rate / 60:6.1f} min, {ratio:.2f}x eager",
            flush=True,
        )
        rows.append(
            {
                "engine": name,
                "batch": batch,
                "median_s": f"{median:.5g}",
                "p20_s": f"{np.quantile(times, 0.2):.5g}",
                "p80_s": f"{np.quantile(times, 0.8):.5g}",
                "images_per_s": f"{rate:.5g}",
                "ratio_to_eager": f"{ratio:.3g}",
                "device": torch.cuda.get_device_name(),
                "rounds": rounds,
                "versions": f"torch {torch.__version__}",
                "commit": measure.commit(),
                "date": date.today().isoformat(),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--plan", choices=["a100", "h100", "b200"])
    parser.add_argument("--window", type=int, default=1, help="codes of a step, with --plan")
    parser.add_argument("--save", action="store_true", help="write results/<device>-sampler.csv")
    options = parser.parse_args()
    if options.plan:
        plans(options.plan, options.batches, options.window)
        return
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu_sampler.py: no CUDA device; --plan needs none.")
    torch.manual_seed(0)
    priors = {level: PixelSNAIL(config).eval().cuda() for level, config in PRIORS.items()}
    check_batches(priors, options.batches)
    rows = []
    for batch in options.batches:
        rows += measured(priors, batch, options.rounds)
    if options.save:
        print(save(rows, "-sampler"))


if __name__ == "__main__":
    main()
