"""Quality against rosinality's port at equal rate, data, processor time and parameters.

    python benchmarks/against_port.py --seconds 80 --prior-seconds 25 --samples 1400 \
        --out docs/reports/port/80.json

All VQ-VAEs have the same layers (strides 4 and 2), codes and images. The port's is trained as its
script does (Adam 3e-4, N(0, 1) codebook, no restarts), and once more by our recipe, that of the
demo: Muon, and AdamW for the prior of the top level. By it priors also see changed copies of the
images, and keep the weights that need the fewest bits for every other held-out image; the port's
are those of the last step. The bits of all of them are those of the other half of the images. Ours
also has the demo's codebooks. Each gets the same seconds of processor time, so that other load
changes nothing. Priors, held-out PSNR, codes in use, bits per image and the kernel distance of
plain samples (EfficientNet-Lite0) are those of each model on its own codes. Few codes in use are
cheap, so the port's priors are also trained on our codes.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from shared.port_training import (
    CONTENDERS,
    DEMO,
    OURS,
    SIZES,
    Contender,
    K,
    bits_of_prior,
    codes_of,
    stage_of,
)

from vqvae2_fast.data import load_emoji, to_float
from vqvae2_fast.metrics import (
    codebook_use,
    kernel_distance,
    marginal_entropy,
    open_features,
    psnr,
)
from vqvae2_fast.sampling import sample_codes

if TYPE_CHECKING:
    from torch import Tensor, nn

REFERENCE_SAMPLES = 300  # what engine `reference`, which is slow, draws


@torch.no_grad()
def error_of(model: Any, port: bool, images: Tensor) -> float:
    total = 0.0
    for batch in to_float(images).split(128):
        out = model(batch)[0] if port else model.decode(model.encode(batch))
        total += float((out.clamp(-1, 1) - batch).square().sum(dtype=torch.float64))
    return total / images.numel() / 4


@torch.no_grad()
def features_of_samples(
    model: Any, port: bool, priors: list[nn.Module], count: int, engine: str
) -> Tensor:
    """float32 `[count, F]` of plain samples, a hundred at a time."""
    features, found = open_features("efficientnet"), []
    for first in range(0, count, 100):
        batch = min(100, count - first)
        draw = partial(sample_codes, first_sample=first, engine=engine)
        top = draw(priors[0], batch)
        bottom = draw(priors[1], batch, condition=top, stream=1)
        images = model.decode_code(top, bottom) if port else model.decode([top, bottom])
        found.append(features(images.clamp(-1, 1)).features)
    return torch.cat(found)


@torch.no_grad()
def distance_of_samples(
    model: Any, port: bool, priors: list[nn.Module], count: int
) -> dict[str, float]:
    """Kernel distance of plain samples from as many training images, and its interval."""
    try:
        drawn = features_of_samples(model, port, priors, count, "auto")
    except ValueError:
        # On codes that are all the same, the port's prior grows activations that only this engine
        # takes. It computes the whole map for each code.
        count = min(count, REFERENCE_SAMPLES)
        drawn = features_of_samples(model, port, priors, count, "reference")
    order = torch.randperm(len(load_emoji("train")), generator=torch.Generator().manual_seed(0))
    features = open_features("efficientnet")
    chosen = load_emoji("train").images[order[:count]]
    real = torch.cat([features(x).features for x in to_float(chosen).split(100)])
    found = kernel_distance(real, drawn)
    return {"value": found.value, "low": found.low, "high": found.high, "samples": count}


def measure(
    contender: Contender, seconds: float, prior_seconds: float, samples: int
) -> tuple[dict[str, Any], list[list[Tensor]]]:
    """A row of the table, and the codes of training and held-out images."""
    port = contender.port_modules
    model, steps = stage_of(contender, seconds)
    train_images, held_out = load_emoji("train").images, load_emoji("held_out").images
    mse = error_of(model, port, held_out)
    codes = codes_of(model, port, train_images, DEMO.variants)
    others = codes_of(model, port, held_out)
    row: dict[str, Any] = {
        "parameters": sum(w.numel() for w in model.parameters()),
        "steps": steps,
        "psnr": psnr(mse),
        "raw_bits": 8 * sum(h * w for h, w in SIZES),
        "levels": {},
    }
    priors = []
    for level, name in enumerate(("top", "bottom")):
        positions = SIZES[level][0] * SIZES[level][1]
        found, prior = bits_of_prior(level, contender, codes, others, prior_seconds)
        priors.append(prior)
        row["levels"][name] = {
            "codes_used": codebook_use(others[level], K).used,
            "codes_used_in_training": codebook_use(codes[level][: len(train_images)], K).used,
            "marginal_bits": marginal_entropy(others[level], K) * positions,
            **found,
        }
    row["bits"] = sum(level["bits"] for level in row["levels"].values())
    if samples:
        row["kernel_distance"] = distance_of_samples(model, port, priors, samples)
    return row, [codes, others]


def show(rows: dict[str, dict[str, Any]]) -> None:
    print(
        "| | PSNR, dB | top codes | bottom codes | bits per image | marginal | parameters | steps "
        "| KD of samples |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        used = " | ".join(str(level["codes_used"]) for level in row["levels"].values())
        marginal = sum(level["marginal_bits"] for level in row["levels"].values())
        kernel = ""
        if "kernel_distance" in row:
            kernel = "{value:.3f} [{low:.3f}, {high:.3f}] of {samples}".format(
                **row["kernel_distance"]
            )
        print(
            f"| {name} | {row['psnr']:.2f} | {used} | {row['bits']:.0f} | {marginal:.0f} | "
            f"{row['parameters']} | {row['steps']} | {kernel} |"
        )


def show_priors(rows: dict[str, dict[str, Any]]) -> None:
    print("\npriors on the codes of vqvae2_fast\n")
    print(
        "| | top, bits | bottom, bits | together | parameters | steps |\n|---|---|---|---|---|---|"
    )
    for name, levels in rows.items():
        both = list(levels.values())
        bits = " | ".join(f"{level['bits']:.1f}" for level in both)
        weights = " + ".join(str(level["prior_parameters"]) for level in both)
        steps = " + ".join(str(level["prior_steps"]) for level in both)
        total = sum(level["bits"] for level in both)
        print(f"| {name} | {bits} | {total:.1f} | {weights} | {steps} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of a VQ-VAE")
    parser.add_argument("--prior-seconds", type=float, default=40.0, help="of each prior")
    parser.add_argument("--samples", type=int, default=0, help="of which the distance is taken")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for name, contender in CONTENDERS.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows[name], codes = measure(
            contender, options.seconds, options.prior_seconds, options.samples
        )
    show(rows)
    priors = {}  # `codes` are now those of the last contender, ours
    for name, contender in CONTENDERS.items():
        print(f"{name} on our codes ...", file=sys.stderr, flush=True)
        priors[name] = {
            level_name: rows[name]["levels"][level_name]
            if contender == OURS
            else bits_of_prior(level, contender, *codes, options.prior_seconds)[0]
            for level, level_name in enumerate(("top", "bottom"))
        }
    show_priors(priors)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "rows": rows,
            "priors_on_our_codes": priors,
            "settings": {
                "seconds": options.seconds,
                "prior_seconds": options.prior_seconds,
                "samples": options.samples,
                "bits": "of every second held-out image; the others select weights",
            },
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
