"""`vqvae2-fast evaluate`: a pipeline on held-out images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import tyro

from vqvae2_fast.commands.common import (
    Command,
    ModelOptions,
    Result,
    write_result,
)
from vqvae2_fast.commands.sources import DataOptions, open_images
from vqvae2_fast.commands.train_vqvae import picture_of_reconstructions
from vqvae2_fast.data import in_order, to_uint8
from vqvae2_fast.metrics import evaluate_pipeline
from vqvae2_fast.report.curves import plot_rate
from vqvae2_fast.training import extract_codes

__all__ = ["Evaluate", "evaluation_lines"]


@dataclass(kw_only=True)
class Evaluate(Command):
    """Measure a pipeline on held-out images: PSNR, bits an image, use of codes, WebP beside them.

    Leaves metrics.json, reconstructions.png and rate.png.
    """

    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    out: Path = Path("runs/evaluation")
    """Folder for what is written."""

    def run(self) -> Result:
        pipeline, _ = self.models.open(self.prepare())
        progress = self.progress()
        config = pipeline.vqvae.config
        dataset = open_images(
            self.source, "held_out", config.image_channels, config.image_size, progress
        )
        images = [batch for batch, _ in in_order(dataset, 128)]
        with TemporaryDirectory() as folder:
            codes = extract_codes(pipeline.vqvae, dataset, folder, progress=progress)
            values, curve = evaluate_pipeline(
                pipeline.vqvae,
                list(pipeline.priors),
                images,
                codes,
                to_uint8(torch.cat(images)),
            )
        write_result(self.out / "metrics.json", values)
        picture = picture_of_reconstructions(
            pipeline.vqvae, dataset, self.out / "reconstructions.png"
        )
        pictures = [str(picture), str(self.out / "rate.png")]
        plot_rate(self.out / "rate.png", curve, values)
        lines = [*evaluation_lines(values), f"pictures: {', '.join(pictures)}"]
        return Result(values, [*lines, f"metrics: {self.out / 'metrics.json'}"])


def evaluation_lines(values: dict[str, Any]) -> list[str]:
    """The measures in words."""
    error = values["reconstruction"]
    lines = [
        f"reconstruction of {values['images']} held-out images: {error['psnr']:.2f} dB (MSE "
        f"{error['mse_unit']:.5f} in [0, 1], {error['mse']:.5f} in [-1, 1])"
    ]
    for name, level in values["levels"].items():
        line = f"{name}: {level['codes_used']} codes used, perplexity {level['perplexity']:.0f}"
        lines.append(
            f"{line}, {level['bits_per_image']:.0f} bits an image ({level['nats_per_code']:.3f} "
            f"nats a code); marginal entropy {level['marginal_bits_per_image']:.0f}"
        )
    webp = values["webp"]["psnr"]
    beside = "cannot go so low" if webp is None else f"reaches {webp:.2f} dB there"
    lines.append(
        f"all levels together: {values['bits_per_image']:.0f} bits an image, marginal entropy "
        f"{values['marginal_bits_per_image']:.0f}; WebP {beside}"
    )
    return lines
