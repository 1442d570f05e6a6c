"""`vqvae2-fast train`: from a folder of images to a pipeline that draws them, in one command."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vqvae2_fast.commands.common import Command, Result, check_out
from vqvae2_fast.data.sources import DataOptions, is_source_name
from vqvae2_fast.pipeline_training import train

__all__ = ["Train"]


@dataclass(kw_only=True)
class Train(Command):
    """Train both stages on your images in the time that you give, and report what they draw.

    Looks at the images, says in a few lines what it will train and why, and ends in time. Leaves
    OUT/report.html with its pictures, and OUT/pipeline, which `sample --pipeline`, `serve`,
    `evaluate` and the others take. Repeat the command to continue what was interrupted; with more
    --minutes the priors are trained further.
    """

    data: Annotated[str, tyro.conf.Positional]
    """A folder of images (flat, one subfolder for each class, or train/ and held_out/), or the name
    of a source, as for --data of the other commands."""
    minutes: float = 20.0
    """Time for everything, from reading the images to the report."""
    size: int | None = None
    """Height and width in pixels, 16 to 256, to which images are scaled and cropped; by default
    their own, and at most 64 on a CPU or 128 on a GPU."""
    out: Path | None = None
    """Folder for everything; runs/ and the name of the data if none is named."""
    flip: bool = False
    """The images may be mirrored left to right, as letters may not."""
    skip_corrupt: bool = False
    """Leave out files that cannot be decoded, with a warning."""
    seed: int = 0
    """Seed of the weights, the order of the data, and the samples."""

    def run(self) -> Result:
        self.check_one_process()
        device = self.prepare()
        out = self.out or Path("runs") / Path(self.data).name.replace(":", "-")
        check_out(out, None if is_source_name(self.data) else DataOptions(data=self.data))
        train(
            self.data,
            self.minutes,
            size=self.size,
            out=out,
            flip=self.flip,
            skip_corrupt=self.skip_corrupt,
            seed=self.seed,
            threads=self.threads,
            device=device,
            progress=self.progress(),
        )
        metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        held_out, pipeline = metrics["held_out"], shlex.quote(str(out / "pipeline"))
        return Result(
            metrics,
            [
                f"held out: {held_out['reconstruction']['psnr']:.2f} dB at "
                f"{held_out['bits_per_image']:.0f} bits per image",
                *metrics["bounds"],
                f"report: {out / 'report.html'}",
                f"pictures: {out}/samples.png, nearest.png, completions.png, reconstructions.png, "
                "curves.png",
                f"draw more: vqvae2-fast sample --pipeline {pipeline} --n 16",
                f"try it: vqvae2-fast serve --pipeline {pipeline}",
            ],
        )
