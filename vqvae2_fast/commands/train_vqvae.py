"""`vqvae2-fast train-vqvae`: stage 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vqvae2_fast.commands.common import Command, DataOptions, Result, open_images, write_result
from vqvae2_fast.data import in_order
from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.report import reconstruction_grid
from vqvae2_fast.report.curves import plot_curves
from vqvae2_fast.training import TrainConfig, train, vqvae_stage

__all__ = ["TrainVQVAE", "picture_of_reconstructions"]


@dataclass(kw_only=True)
class TrainVQVAE(Command):
    """Train a VQ-VAE (stage 1) on images; leaves checkpoints, log.jsonl, pictures and result.json.

    --preset sets the defaults of all --model and --train options: put it first and change what you
    like after it.
    """

    preset: str = "emoji32"
    """Defaults of the model and of its training; `vqvae2-fast info --presets` lists them."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    out: Path = Path("runs/vqvae")
    """Folder of the run."""
    resume: bool = False
    """Go on from the latest checkpoint in --out."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    model: VQVAE2Config = field(default_factory=VQVAE2Config)
    train: TrainConfig = field(default_factory=TrainConfig)

    def run(self) -> Result:
        device = self.prepare()
        check_fresh(self.out, self.resume)
        config = self.model
        sets = [
            open_images(self.source, split, config.image_channels, config.image_size)
            for split in ("train", "held_out")
        ]
        torch.manual_seed(self.train.seed)
        model = VQVAE2(config).to(device)
        stage = vqvae_stage(model, *sets, self.train, flip=self.flip)
        trained = train(
            stage, self.train, out=self.out, resume=self.resume, progress=self.progress(),
            class_names=sets[0].class_names,
        )  # fmt: skip
        picture = picture_of_reconstructions(model, sets[1], self.out / "reconstructions.png")
        plot_curves(self.out / "curves.png", trained.log, num_embeddings=config.num_embeddings)
        values = {"steps": self.train.steps, "held_out": trained.metrics, "run": str(self.out)}
        write_result(self.out / "result.json", values)
        return Result(
            values,
            [f"held out: {trained.metrics['psnr']:.2f} dB", f"run: {self.out}",
             f"pictures: {picture}, {self.out / 'curves.png'}"],
        )  # fmt: skip


def check_fresh(out: Path, resume: bool) -> None:
    """Raises ValueError if a run would write over another."""
    if not resume and (out / "checkpoints").exists():
        raise ValueError(
            f"--out: {out} holds a run already. Add --resume to go on with it, or name "
            "another folder."
        )


@torch.no_grad()
def picture_of_reconstructions(
    model: VQVAE2, dataset: object, path: Path, count: int = 36, title: str = ""
) -> Path:
    """Held-out images, spread evenly over the set, each above its reconstruction."""
    images = torch.cat([batch for batch, _ in in_order(dataset, 256)])
    chosen = images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]
    device = next(model.parameters()).device
    reconstructed = model.decode(model.encode(chosen.to(device))).cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    reconstruction_grid(chosen, reconstructed, title=title).save(path)
    return path
