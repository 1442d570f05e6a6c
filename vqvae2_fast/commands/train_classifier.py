"""`vqvae2-fast train-classifier`: the judge of samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vqvae2_fast.commands.common import Command, Result, check_run, write_result
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.models.classifier import Classifier
from vqvae2_fast.training import train
from vqvae2_fast.training.classifier import check_classes, classifier_recipe, classifier_stage

__all__ = ["TrainClassifier"]


@dataclass(kw_only=True)
class TrainClassifier(Command):
    """Train a classifier on labelled images: for rejection sampling, for features of small sets,
    and as the upper bound of the classification accuracy score.

    Images of 128 pixels and more get ResNet-50 and the paper's 90 epochs; smaller ones a small
    network and AdamW.
    """

    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    image_size: tuple[int, int] = (32, 32)
    """Height and width that images are brought to; those of the VQ-VAE whose samples it judges."""
    image_channels: int = 3
    epochs: int = 10
    """Passes over the training images, of the small network."""
    steps: int | None = None
    """In place of --epochs: optimiser steps."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    crop_padding: int = 0
    """Shift training images at random by up to so many pixels."""
    out: Path = Path("runs/classifier")
    """Folder of the run."""
    resume: bool = False
    """Go on from the latest checkpoint in --out."""
    seed: int = 0

    def run(self) -> Result:
        device = self.prepare()
        check_run(self.out, "classifier", resume=self.resume)
        progress = self.progress()
        train_set, held_out = (
            open_images(self.source, split, self.image_channels, self.image_size, progress)
            for split in ("train", "held_out")
        )
        for images in (train_set, held_out):
            check_classes("train-classifier", images)
        config, settings = classifier_recipe(
            train_set.image_shape, len(train_set.class_names), len(train_set), epochs=self.epochs
        )
        settings = replace(settings, seed=self.seed, steps=self.steps or settings.steps)
        torch.manual_seed(self.seed)
        model = Classifier(config).to(device)
        stage = classifier_stage(
            model, train_set, held_out, settings, flip=self.flip, crop_padding=self.crop_padding
        )
        trained = train(
            stage,
            settings,
            out=self.out,
            resume=self.resume,
            progress=progress,
            class_names=train_set.class_names,
        )
        values = {
            "steps": settings.steps,
            "network": config.network,
            "held_out": trained.metrics,
            "classes": list(train_set.class_names),
            "run": str(self.out),
        }
        write_result(self.out / "result.json", values)
        return Result(
            values,
            [
                f"held out: {100 * trained.metrics['accuracy']:.2f} % of {len(held_out)} images",
                f"run: {self.out}",
            ],
        )
