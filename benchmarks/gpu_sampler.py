"""Engine `cuda` on a GPU: the port's default priors, one image and many, against `eager`.

    python benchmarks/gpu_sampler.py [--rounds 5] [--batches 1 8 64 128] [--save] [--json FILE]
    python benchmarks/gpu_sampler.py --stage-times LIBRARY [--out stage_times.json]

`--stage-times` prints how long the stages of a position wait, work and tell, with a library built
as shared/stage_times.py says.

One 256×256 image is 32×32 top and 64×64 bottom codes, with random weights, on which time does not
depend. Engines draw in turns in one process; ratios are those of medians, without their spread.
Sample 0 of every batch
must be the same: its codes are compared as they are drawn, and a difference fails the script once
all is measured. What is saved is written again after every round, so that a run that is stopped
leaves what it has.
"""

from __future__ import annotations

import argparse
import statistics
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from gpu import clock, rounded, save, save_json
from sampler import PRIORS
from shared import measure, stage_times

from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.sampling import sample_codes
from vqvae2_fast.sampling.engines.cuda import PRECISIONS
from vqvae2_fast.sampling.engines.cuda_library import Library

if TYPE_CHECKING:
    from collections.abc import Iterator

ENGINES = (*PRECISIONS, "eager")
IMAGES = 50_000


def draw(priors: dict[str, PixelSNAIL], batch: int, engine: str, first: int = 0) -> torch.Tensor:
    """Codes of the bottom level; both maps are drawn."""
    top = sample_codes(priors["top"], batch, first_sample=first, engine=engine)
    return sample_codes(
        priors["bottom"], batch, condition=top, first_sample=first, stream=1, engine=engine
    )


def drawing(priors: dict[str, PixelSNAIL], batch: int, names: list[str]) -> dict[str, torch.Tensor]:
    """Sample 0 `[1, height, width]` of every engine that draws this batch. The first draw also
    packs the weights and sets up libraries. The other engines are named with the reason."""
    first = {}
    for name in names:
        try:
            first[name] = draw(priors, batch, name)[:1].cpu()
        except RuntimeError as error:
            print(f"batch {batch:4} {name:14} left out: {error}", flush=True)
    return first


def measured(
    priors: dict[str, PixelSNAIL], batch: int, names: list[str], rounds: int
) -> Iterator[list[dict[str, object]]]:
    """The table's rows of a batch, after each round."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, times in seconds.items():
            start = clock()
            draw(priors, batch, name)
            times.append(clock() - start)
        yield [row(name, batch, seconds) for name in names]


def row(name: str, batch: int, seconds: dict[str, list[float]]) -> dict[str, object]:
    times = seconds[name]
    median = statistics.median(times)
    eager = seconds.get("eager")
    return {
        "engine": name,
        "batch": batch,
        "median_s": rounded(median, 5),
        "p20_s": rounded(np.quantile(times, 0.2), 5),
        "p80_s": rounded(np.quantile(times, 0.8), 5),
        "images_per_s": rounded(batch / median, 5),
        "ratio_to_eager": rounded(statistics.median(eager) / median, 3) if eager else "",
        "sample_0": "",
        "device": torch.cuda.get_device_name(),
        "rounds": len(times),
        "versions": measure.versions(("vqvae2_fast", "torch")),
        "commit": measure.commit(),
        "date": date.today().isoformat(),
    }


def print_row(row: dict[str, object]) -> None:
    rate = float(str(row["images_per_s"]))
    ratio = f", {row['ratio_to_eager']}x eager" if row["ratio_to_eager"] else ""
    print(
        f"batch {row['batch']:4} {row['engine']:14} {row['median_s']:8.3f} s, "
        f"{rate:8.2f} images/s, {IMAGES} in {IMAGES / rate / 60:6.1f} min{ratio}; "
        f"sample 0 {row['sample_0']}",
        flush=True,
    )


def random_priors() -> dict[str, PixelSNAIL]:
    torch.manual_seed(0)
    return {level: PixelSNAIL(config).eval().cuda() for level, config in PRIORS.items()}


def measure_all(priors: dict[str, PixelSNAIL], options: argparse.Namespace) -> list[str]:
    """Prints and saves the table; returns what went wrong."""
    before: list[dict[str, object]] = []
    alone: dict[str, torch.Tensor] = {}
    problems = []
    for batch in options.batches:
        samples = drawing(priors, batch, options.engines)
        problems += [
            f"engine {name} did not draw batch {batch}"
            for name in options.engines
            if name not in samples
        ]
        if not samples:
            continue
        same = {}
        for name, sample in samples.items():
            same[name] = torch.equal(sample, alone.setdefault(name, sample))
            # eager sums in an order that depends on the batch, so its codes may differ.
            if not same[name] and name in PRECISIONS:
                problems.append(f"engine {name}: sample 0 differs at batch {batch}")
        rows: list[dict[str, object]] = []
        for rows in measured(priors, batch, list(samples), options.rounds):
            for each in rows:
                each["sample_0"] = "same" if same[str(each["engine"])] else "differs"
            if options.json:
                save_json(before + rows, options.json)
            if options.save:
                save(before + rows, "-sampler", ("engine", "batch"))
        for each in rows:
            print_row(each)
        before += rows
    return problems


def record_stage_times(
    priors: dict[str, PixelSNAIL], library: str, batches: list[int], rounds: int
) -> Iterator[dict[str, object]]:
    """What is known after each case that was measured.

    The largest batch comes last; what was recorded before it is kept if it does not end in time.
    """
    cases: list[dict[str, object]] = []
    for batch in batches:
        maps = None
        for level, prior in priors.items():
            for engine in PRECISIONS:
                stages, codes = stage_times.record(
                    Library(library), prior, engine, batch, rounds, condition=maps
                )
                cases.append({"name": f"{level}, {engine}, batch {batch}", "stages": stages})
                print("\n".join(stage_times.lines(str(cases[-1]["name"]), stages)), flush=True)
                yield {
                    "device": torch.cuda.get_device_name(),
                    "commit": measure.commit(),
                    "date": date.today().isoformat(),
                    "cases": cases,
                }
            maps = codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=measure.count, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--stage-times", metavar="LIBRARY", help="record times of stages")
    parser.add_argument("--out", type=Path, default=Path("stage_times.json"))
    parser.add_argument(
        "--save",
        action="store_true",
        help="put the rows into results/<device>-sampler.csv, where they replace earlier ones of "
        "the same engine and batch",
    )
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu_sampler.py: no CUDA device.")
    priors = random_priors()
    if options.stage_times:
        for recorded in record_stage_times(
            priors, options.stage_times, options.batches, options.rounds
        ):
            save_json(recorded, options.out)
        print(options.out)
        return
    problems = measure_all(priors, options)
    if problems:
        raise SystemExit("benchmarks/gpu_sampler.py: " + "; ".join(problems) + ".")


if __name__ == "__main__":
    main()
