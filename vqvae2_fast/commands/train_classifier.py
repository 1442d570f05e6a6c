"""`vqvae2-fast train-classifier`: the judge of samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from vqvae2_fast.commands.common import Result, described, open_both, write_result
from vqvae2_fast.commands.plan import Task
from vqvae2_fast.commands.training import TrainingCommand, best_lines
from vqvae2_fast.data.sources import DataOptions
from vqvae2_fast.models.classifier import Classifier
from vqvae2_fast.training.classifier import classifier_recipe, classifier_stage
from vqvae2_fast.training.images import check_classes

__all__ = ["TrainClassifier"]


@dataclass(kw_only=True)
class TrainClassifier(TrainingCommand):
    """Train a classifier on labelled images: for rejection sampling, for features of small sets,
    and as the upper bound of the classification accuracy score.

    Images of 128 pixels and more get ResNet-50 and the 90 epochs of that score's paper
    (arXiv:1905.10887); smaller ones a small network and AdamW.
    """

    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    image_size: tuple[int, int] = (32, 32)
    """Height and width that images are scaled and cropped to: those of the VQ-VAE whose samples the
    classifier will judge."""
    image_channels: int = 3
    """3 for RGB, 1 for grey."""
    epochs: int | None = None
    """Passes over the training images; by default 90 of ResNet-50, 10 of the small network."""
    steps: int | None = None
    """In place of --epochs: optimiser steps."""
    batch_size: int | None = None
    """Images that a process takes at once: fewer need less memory. The number in a step stays
    the same; 64 at once by default."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    crop_padding: int = 0
    """Pixels that training images are shifted by at most, at random."""
    out: Path = Path("runs/classifier")
    """Folder of the run."""
    seed: int = 0
    """Seed of the weights, the order of the data and its augmentation."""

    def run(self) -> Result:
        ranks, device, progress = self.begin(self.out, "classifier")
        train_set, held_out = ranks.rank0_first(
            lambda: open_both(
                self.source, self.image_channels, self.image_size, progress, dry=self.dry_run
            )
        )
        for images in (train_set, held_out):
            check_classes(images)
        config, settings = classifier_recipe(
            train_set.image_shape,
            len(train_set.class_names),
            len(train_set),
            epochs=self.epochs,
            steps=self.steps,
        )
        # All processes share the batch of the recipe, however many images each takes at once.
        settings = replace(
            settings,
            batch_size=settings.batch_size if self.batch_size is None else self.batch_size,
            global_batch=settings.batch_size * settings.accumulate,
            accumulate=1,
            seed=self.seed,
        )
        task = Task(
            lambda: Classifier(config),
            lambda model: classifier_stage(
                model, train_set, held_out, settings, flip=self.flip, crop_padding=self.crop_padding
            ),
            settings,
            device,
            progress,
            self.out,
        )
        plan = self.planned(
            ranks,
            task,
            items={"train": len(train_set), "held_out": len(held_out)},
            shape=f"{described(train_set)}, {config.num_classes} classes",
        )
        if plan is not None:
            return plan
        _, trained = self.fit(ranks, task, train_set.class_names)
        if ranks.rank:
            return Result({})
        values = {
            "steps": settings.steps,
            "network": config.network,
            "held_out": trained.metrics,
            "best": trained.best,
            "classes": list(train_set.class_names),
            "run": str(self.out),
        }
        write_result(self.out / "result.json", values)
        return Result(
            values,
            [
                f"held out: {100 * trained.metrics['accuracy']:.2f} % of {len(held_out)} images",
                *best_lines(trained, self.out),
                f"run: {self.out}",
            ],
        )
