"""Quality against rosinality's port at equal rate, data, processor time and parameters.

    python benchmarks/against_port.py --seconds 60 --prior-seconds 40 --out docs/reports/port.json

Both VQ-VAEs have the same layers (strides 4 and 2), codes and images; the port's trains as its
script does (Adam 3e-4, N(0, 1) codebook, no restarts), ours as the library does by default but for
the codebook's decay. Each gets the same seconds of processor time, so that other load changes
nothing. The priors of each: the port's on its codes by its script, ours on ours. Held-out PSNR,
codes in use and bits an image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from vqvae2_fast import VQVAE2, PixelSNAIL, PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.compat.rosinality import VQVAE as PortVQVAE
from vqvae2_fast.compat.rosinality import PixelSNAIL as PortPixelSNAIL
from vqvae2_fast.data import batches, load_emoji, shuffled_indices, to_float
from vqvae2_fast.metrics import codebook_use, marginal_entropy, psnr
from vqvae2_fast.training.average import PolyakAverage
from vqvae2_fast.training.config import TrainConfig, learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

K, D, CHANNELS, RESIDUAL, BLOCKS = 256, 32, 48, 48, 2
PRIOR_CHANNELS = 64
SIZES = ((4, 4), (8, 8))  # 80 codes of 8 bits: 640 bits an image before the priors
BATCH = 32
PEAK_RATE = 3e-3  # of both of our stages


def train(
    model: nn.Module, loss: Callable[[int], Tensor], seconds: float, *, port: bool,
    after_step: Callable[[], object] = lambda: None,
) -> int:  # fmt: skip
    """Train for so many seconds of processor time; returns the steps.

    The port: Adam at 3e-4 throughout, float32. Ours: AdamW whose rate falls as a cosine of the
    share of the time that has passed, clipped gradients, a Polyak average, bfloat16.
    """
    if port:
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    average = None if port else PolyakAverage(model, 0.98)
    whole = TrainConfig(steps=1000, learning_rate=PEAK_RATE, warmup_steps=30)
    model.train()
    start = time.process_time()
    for step in itertools.count():
        share = (time.process_time() - start) / seconds
        if share >= 1:
            break
        if not port:
            rate = learning_rate(max(30, int(1000 * share)), whole) * min(1.0, (step + 1) / 30)
            for group in optimizer.param_groups:
                group["lr"] = rate
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=not port):
            value = loss(step)
        value.backward()
        if not port:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after_step()
        if average is not None:
            average.update(model, step)
    if average is not None:
        model.load_state_dict(average.weights, strict=False)
    model.eval()
    return step


def port_stage(seconds: float) -> tuple[Any, int]:
    torch.manual_seed(0)
    model = PortVQVAE(3, CHANNELS, BLOCKS, RESIDUAL, D, K)
    images = batches(load_emoji("train"), BATCH, seed=0, flip=True)

    def loss(step: int) -> Tensor:
        x = next(images)[0]
        out, latent = model(x)
        return F.mse_loss(out, x) + 0.25 * latent.mean()

    return model, train(model, loss, seconds, port=True)


def our_stage(seconds: float) -> tuple[Any, int]:
    torch.manual_seed(0)
    config = VQVAE2Config(
        image_size=(32, 32), strides=(4, 2), hidden_channels=CHANNELS, residual_channels=RESIDUAL,
        num_residual_blocks=BLOCKS, num_embeddings=K, embedding_dim=D, restart=0.3, decay=0.9,
    )  # fmt: skip
    model = VQVAE2(config).to(memory_format=torch.channels_last)
    images = batches(load_emoji("train"), BATCH, seed=0, flip=True)

    def loss(step: int) -> Tensor:
        x = next(images)[0].to(memory_format=torch.channels_last)
        return model.loss(x, model(x))

    return model, train(model, loss, seconds, port=False, after_step=model.update_codebooks_)


@torch.no_grad()
def codes_of(model: Any, port: bool, images: Tensor) -> list[Tensor]:
    parts = []
    for batch in to_float(images).split(128):
        parts.append(list(model.encode(batch)[3:]) if port else model.encode(batch))
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
            size=SIZES[level], num_embeddings=K, channels=PRIOR_CHANNELS,
            residual_channels=PRIOR_CHANNELS, num_blocks=2, layers_per_block=2, kernel_size=3,
            attention=level == 0, condition_sizes=condition, condition_channels=PRIOR_CHANNELS,
            num_condition_layers=2,
        )
    )  # fmt: skip


def bits_of_prior(
    level: int, port: bool, train_codes: list[Tensor], held_out: list[Tensor], seconds: float
) -> tuple[float, int, int]:
    """Held-out bits an image of one level, weights of the prior, steps."""
    model = prior_of(level, port)

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

    steps = train(model, loss, seconds, port=port)
    with torch.no_grad():
        total = F.cross_entropy(logits(held_out).float(), held_out[level], reduction="sum")
    bits = float(total) / torch.log(torch.tensor(2.0)).item() / len(held_out[0])
    return bits, sum(w.numel() for w in model.parameters()), steps


def measure(port: bool, seconds: float, prior_seconds: float) -> dict[str, Any]:
    model, steps = port_stage(seconds) if port else our_stage(seconds)
    train_images, held_out = load_emoji("train").images, load_emoji("held_out").images
    mse = error_of(model, port, held_out)
    codes, others = (codes_of(model, port, images) for images in (train_images, held_out))
    row: dict[str, Any] = {
        "parameters": sum(w.numel() for w in model.parameters()), "steps": steps,
        "psnr": psnr(mse), "raw_bits": 8 * sum(h * w for h, w in SIZES), "levels": {},
    }  # fmt: skip
    for level, name in enumerate(("top", "bottom")):
        bits, weights, prior_steps = bits_of_prior(level, port, codes, others, prior_seconds)
        positions = SIZES[level][0] * SIZES[level][1]
        row["levels"][name] = {
            "codes_used": codebook_use(others[level], K).used,
            "codes_used_in_training": codebook_use(codes[level], K).used,
            "marginal_bits": marginal_entropy(others[level], K) * positions, "bits": bits,
            "prior_parameters": weights, "prior_steps": prior_steps,
        }  # fmt: skip
    row["bits"] = sum(level["bits"] for level in row["levels"].values())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of a VQ-VAE")
    parser.add_argument("--prior-seconds", type=float, default=40.0, help="of each prior")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {
        name: measure(port, options.seconds, options.prior_seconds)
        for name, port in (("port", True), ("vqvae2_fast", False))
    }
    print(
        "| | PSNR, dB | top codes | bottom codes | bits an image | marginal | parameters | steps |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        used = " | ".join(str(level["codes_used"]) for level in row["levels"].values())
        marginal = sum(level["marginal_bits"] for level in row["levels"].values())
        print(
            f"| {name} | {row['psnr']:.2f} | {used} | {row['bits']:.0f} | {marginal:.0f} | "
            f"{row['parameters']} | {row['steps']} |"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows["settings"] = {"seconds": options.seconds, "prior_seconds": options.prior_seconds}
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
