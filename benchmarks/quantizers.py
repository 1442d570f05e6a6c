"""Which quantiser gives which images at equal bits: a small VQ-VAE with each, equally long.

    python benchmarks/quantizers.py --data emoji64 --out quantizers.csv

Trains the VQ-VAE of preset emoji64 once with each quantiser named, on the same batches, and
measures it on the held-out images: PSNR, LPIPS, codes in use, perplexity, bits by the codes'
entropy, and the median processor time of a step. They are trained one after the other, not in
turns. What the file has with as many steps is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from shared import measure

from vqvae2_fast import VQVAE2, preset
from vqvae2_fast.data import batches, in_order
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.metrics.codes import CodebookUse, code_counts, entropy_of_counts
from vqvae2_fast.metrics.perceptual import load_lpips
from vqvae2_fast.metrics.reconstruction import reconstruction_measures
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.training.config import TrainConfig, learning_rate, step_seed
from vqvae2_fast.training.network import autocast_of
from vqvae2_fast.training.optimizer import make_optimizer

QUANTIZERS = (
    "ema",
    "simvq",
    "fsq:8,8,8",
    "lfq",
    "bsq",
    "residual:16,32",
    "cosine",
    "gradient",
    "residual-fsq:3:2,2,2",
)


def trained(model: VQVAE2, images: object, config: TrainConfig) -> float:
    """Train in place; the median processor time of a step in ms."""
    optimizer = make_optimizer(model, config)
    autocast = autocast_of(model, config)
    times = []
    source = batches(images, config.batch_size, seed=config.seed, flip=False)
    for step, (batch, _) in zip(range(config.steps), source, strict=False):
        start = time.process_time()
        torch.manual_seed(step_seed(config.seed, step))
        batch = batch.to(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        with autocast:
            loss = VQVAE2.loss(batch, model(batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        model.update_codebooks_()
        times.append(time.process_time() - start)
    return statistics.median(times) * 1e3


def measured(model: VQVAE2, images: object) -> dict[str, float]:
    pictures = [batch for batch, _ in in_order(images, 64)]
    result = reconstruction_measures(model, pictures, load_lpips())
    row: dict[str, float] = {"psnr": result.psnr, "lpips": result.lpips or float("nan")}
    codes = [model.encode(batch) for batch in pictures]
    bits = 0.0
    for level, name in enumerate(level_names(model.config.num_levels)):
        counts = code_counts((maps[level] for maps in codes), model.config.num_embeddings)
        use = CodebookUse.of_counts(counts)
        row[f"used_{name}"] = use.used
        row[f"perplexity_{name}"] = use.perplexity
        bits += entropy_of_counts(counts) * codes[0][level][0].numel()
    row["entropy_bits"] = bits
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a source of images, as `--data` elsewhere")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--quantizers", nargs="+", default=QUANTIZERS)
    parser.add_argument("--out", type=Path, default=Path("quantizers.csv"))
    options = parser.parse_args()
    base = preset("emoji64")
    config = replace(base.training.vqvae, steps=options.steps)
    print(measure.machine())
    rows = []
    if options.out.exists():
        with options.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    train_set, held_out = (
        open_images(DataOptions(options.data), split, 3, base.vqvae.image_size)
        for split in ("train", "held_out")
    )
    for quantizer in options.quantizers:
        if any((row["quantizer"], row["steps"]) == (quantizer, str(config.steps)) for row in rows):
            print(f"{quantizer}: {options.out} has it after {config.steps} steps")
            continue
        torch.manual_seed(0)
        model = VQVAE2(replace(base.vqvae, quantizer=(quantizer,)))
        model.to(memory_format=torch.channels_last)
        milliseconds = trained(model, train_set, config)
        row = {"quantizer": quantizer, "steps": str(config.steps), "ms_a_step": milliseconds}
        row |= measured(model.eval(), held_out)
        rows.append({name: f"{v:.4f}" if type(v) is float else v for name, v in row.items()})
        print(rows[-1], flush=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
