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
import itertools
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from vqvae2_fast import VQVAE2, PixelSNAIL, PixelSNAILConfig, VQVAE2Config, preset
from vqvae2_fast.compat.rosinality import VQVAE as PortVQVAE
from vqvae2_fast.compat.rosinality import PixelSNAIL as PortPixelSNAIL
from vqvae2_fast.data import batches, load_emoji, shuffled_indices, to_float
from vqvae2_fast.metrics import (
    codebook_use,
    kernel_distance,
    marginal_entropy,
    open_features,
    psnr,
)
from vqvae2_fast.sampling import sample_codes
from vqvae2_fast.training.average import PolyakAverage
from vqvae2_fast.training.config import TrainConfig, learning_rate
from vqvae2_fast.training.extraction import Variants
from vqvae2_fast.training.muon import Muon
from vqvae2_fast.training.network import autocast_of
from vqvae2_fast.training.optimizer import hidden_matrices, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

K, D, CHANNELS, RESIDUAL, BLOCKS = 256, 32, 48, 48, 2
PRIOR_CHANNELS = 64
SIZES = ((4, 4), (8, 8))  # 80 codes of 8 bits: 640 bits per image before the priors
BATCH = 32
STEPS = 1000  # which our schedule is stretched over
REFERENCE_SAMPLES = 300  # what engine `reference`, which is slow, draws
VALIDATIONS = 10  # of a prior by our recipe, evenly over its time


_DEMO = preset("emoji32").training
OUR_VQVAE, *OUR_PRIORS = (
    replace(stage, steps=STEPS, warmup_steps=30) for stage in (_DEMO.vqvae, *_DEMO.priors)
)
AS_THEY_ARE = Variants()


@dataclass(frozen=True)
class Contender:
    """Whose modules are trained, and by whose recipe."""

    port_modules: bool
    port_recipe: bool


PORT, PORT_BY_US, OURS = Contender(True, True), Contender(True, False), Contender(False, False)
CONTENDERS = {"port": PORT, "port, our recipe": PORT_BY_US, "vqvae2_fast": OURS}


def optimizer_of(model: nn.Module, ours: TrainConfig | None) -> torch.optim.Optimizer:
    if ours is None:
        return torch.optim.Adam(model.parameters(), lr=3e-4)
    if ours.optimizer == "muon" and isinstance(model, PortPixelSNAIL):
        # `make_optimizer` leaves the output layer to AdamW, which has another name in the port.
        hidden = hidden_matrices(model) - set(model.out.parameters())
        weights = list(model.parameters())
        return Muon(
            [weight for weight in weights if weight in hidden],
            [weight for weight in weights if weight not in hidden],
            lr=ours.learning_rate,
        )
    return make_optimizer(model, ours)


def train(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    seconds: float,
    ours: TrainConfig | None,
    *,
    after_step: Callable[[], object] = lambda: None,
    validate: Callable[[], float] | None = None,
) -> int:
    """Train for this many seconds of processor time; returns the number of steps.

    Args:
        ours: Our recipe, whose rate falls as a cosine of the share of the time that has passed,
            with clipped gradients, a Polyak average, and bfloat16 where the processor computes in
            it. None: the port's, Adam at 3e-4 throughout, float32.
        validate: By our recipe, the weights with the lowest of this are kept. It takes part of the
            time. None keeps the last.
    """
    optimizer = optimizer_of(model, ours)
    port = ours is None
    average = None if port else PolyakAverage(model, 0.98)
    validations, lowest = 0, math.inf
    best: dict[str, Tensor] = {}
    whole = TrainConfig(precision="float32") if ours is None else ours
    model.train()
    start = time.process_time()
    for step in itertools.count():
        share = (time.process_time() - start) / seconds
        if share >= 1:
            break
        if not port:
            rate = learning_rate(max(30, int(STEPS * share)), whole) * min(1.0, (step + 1) / 30)
            for group in optimizer.param_groups:
                group["lr"] = rate
        torch.manual_seed(step)
        with autocast_of(model, whole):
            total = loss(step)
        total.backward()
        if not port:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after_step()
        if average is None:
            continue
        average.update(model, step)
        if validate is not None and share * VALIDATIONS >= validations + 1:
            validations += 1
            with average.applied(model):
                value = validate()
                if value < lowest:
                    lowest = value
                    best = {name: weight.clone() for name, weight in model.state_dict().items()}
    if average is not None:
        model.load_state_dict(average.weights, strict=False)
    if validate is not None and validate() > lowest:
        model.load_state_dict(best)
    model.eval()
    return step


def stage_of(contender: Contender, seconds: float) -> tuple[Any, int]:
    """A trained VQ-VAE and its steps."""
    torch.manual_seed(0)
    images = batches(load_emoji("train"), BATCH, seed=0, flip=True)
    if contender.port_modules:
        port = PortVQVAE(3, CHANNELS, BLOCKS, RESIDUAL, D, K)

        def port_loss(step: int) -> Tensor:
            x = next(images)[0]
            out, latent = port(x)
            return F.mse_loss(out, x) + 0.25 * latent.mean()

        return port, train(port, port_loss, seconds, None if contender.port_recipe else OUR_VQVAE)
    config = VQVAE2Config(
        image_size=(32, 32),
        strides=(4, 2),
        hidden_channels=CHANNELS,
        residual_channels=RESIDUAL,
        num_residual_blocks=BLOCKS,
        num_embeddings=K,
        embedding_dim=D,
        restart=0.3,
        quantize_after=50,
    )
    model = VQVAE2(config).to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        x = next(images)[0].to(memory_format=torch.channels_last)
        return model.loss(x, model(x))

    return model, train(model, loss, seconds, OUR_VQVAE, after_step=model.update_codebooks_)


@torch.no_grad()
def codes_of(
    model: Any, port: bool, images: Tensor, variants: Variants = AS_THEY_ARE
) -> list[Tensor]:
    """All images as they are, then the other variants of all."""
    parts = []
    for variant in range(variants.count):
        for rows in torch.arange(len(images)).split(128):
            x = variants.apply(to_float(images[rows]), rows, variant)
            parts.append(list(model.encode(x)[3:]) if port else model.encode(x))
    return [torch.cat(level) for level in zip(*parts, strict=True)]


@torch.no_grad()
def error_of(model: Any, port: bool, images: Tensor) -> float:
    total = 0.0
    for batch in to_float(images).split(128):
        out = model(batch)[0] if port else model.decode(model.encode(batch))
        total += float((out.clamp(-1, 1) - batch).square().sum(dtype=torch.float64))
    return total / images.numel() / 4


def prior_of(level: int, port: bool) -> nn.Module:
    torch.manual_seed(0)
    stack = {} if level == 0 else {"n_cond_res_block": 2, "cond_res_channel": PRIOR_CHANNELS}
    if port:
        return PortPixelSNAIL(
            SIZES[level], K, PRIOR_CHANNELS, 3, 2, 2, PRIOR_CHANNELS, attention=level == 0, **stack
        )
    condition = SIZES[:level]
    return PixelSNAIL(
        PixelSNAILConfig(
            size=SIZES[level],
            num_embeddings=K,
            channels=PRIOR_CHANNELS,
            residual_channels=PRIOR_CHANNELS,
            num_blocks=2,
            layers_per_block=2,
            kernel_size=3,
            attention=level == 0,
            condition_sizes=condition,
            condition_channels=PRIOR_CHANNELS,
            num_condition_layers=2,
        )
    )


def bits_of_prior(
    level: int,
    contender: Contender,
    train_codes: list[Tensor],
    held_out: list[Tensor],
    seconds: float,
) -> tuple[dict[str, Any], nn.Module]:
    """Held-out bits per image of one level, weights of the prior and steps; and the prior.

    Args:
        train_codes: Those of all variants, of which the port's recipe takes the unchanged images.
        held_out: The first of every two images select weights by our recipe; the bits are those of
            the second, by either recipe.
    """
    port = contender.port_modules
    model = prior_of(level, port)
    if contender.port_recipe:
        train_codes = [codes[: len(load_emoji("train"))] for codes in train_codes]
    selecting, judged = ([codes[start::2] for codes in held_out] for start in (0, 1))

    def logits(maps: list[Tensor]) -> Tensor:
        if port:
            condition = maps[0] if level else None
            return model(maps[level], condition=condition)[0]
        return model(maps[level], maps[:level] or None)

    order = shuffled_indices(len(train_codes[0]), BATCH, seed=0)

    def loss(step: int) -> Tensor:
        _, rows = next(order)
        maps = [codes[rows] for codes in train_codes]
        return F.cross_entropy(logits(maps).float(), maps[level])

    @torch.no_grad()
    def bits_of(maps: list[Tensor]) -> float:
        model.eval()
        nats = F.cross_entropy(logits(maps).float(), maps[level], reduction="sum")
        model.train()
        return float(nats) / math.log(2) / len(maps[0])

    if contender.port_recipe:
        steps = train(model, loss, seconds, None)
    else:
        validate = partial(bits_of, selecting)
        steps = train(model, loss, seconds, OUR_PRIORS[level], validate=validate)
    bits = bits_of(judged)
    model.eval()
    weights = sum(w.numel() for w in model.parameters())
    return {"bits": bits, "prior_parameters": weights, "prior_steps": steps}, model


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
    codes = codes_of(model, port, train_images, _DEMO.variants)
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
