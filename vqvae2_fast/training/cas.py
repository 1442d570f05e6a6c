"""Classification accuracy score: how well a classifier learns from generated images.

https://arxiv.org/abs/1905.10887: replace every training image by a generated one of its class,
train, test on real images. Unlike an Inception score or a Fréchet distance it falls when a class
lacks variety, whatever its images look like.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.data import in_order
from vqvae2_fast.metrics.accuracy import Accuracy, classification_accuracy
from vqvae2_fast.models.classifier import Classifier
from vqvae2_fast.modules.seeded import seeded
from vqvae2_fast.training.classifier import (
    check_classes,
    check_same_names,
    classifier_recipe,
    classifier_stage,
)
from vqvae2_fast.training.loop import train
from vqvae2_fast.training.state import OtherRunError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vqvae2_fast.console.progress import Progress
    from vqvae2_fast.data import ImageSource

__all__ = ["CasRow", "classification_accuracy_score"]

_TEST_BATCH = 256


@dataclass(frozen=True)
class CasRow:
    """A classifier trained on one kind of images, and its accuracy on each set of test images."""

    trained_on: str
    images: int
    accuracies: dict[str, Accuracy]
    classifier: Classifier


def classification_accuracy_score(
    train_sets: Mapping[str, ImageSource],
    test_sets: Mapping[str, ImageSource],
    *,
    out: Path,
    steps: int | None = None,
    epochs: int = 10,
    flip: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> list[CasRow]:
    """Train one classifier on each training set, all by one recipe, from one start, equally long.

    Args:
        train_sets: By name, such as real, reconstructed, sampled; preferably of equal size.
        test_sets: By name; the first decides which checkpoints are called best.
        out: Folder of the runs; a run that is there is continued.
        steps: Number of steps; by default those of `epochs` passes over the first training set.

    Raises:
        ValueError: Images without labels, or of different classes; or a run in `out` that was made
            otherwise.
        DivergedError, InterruptedRun, OSError, RuntimeError: As `train`.
    """
    rows = []
    first = next(iter(train_sets.values()))
    config, settings = classifier_recipe(
        first.image_shape, max(2, len(first.class_names)), len(first), epochs=epochs, steps=steps
    )
    settings = replace(
        settings,
        seed=seed,
        validate_every=settings.steps,
        # Any number of processes shares one batch.
        global_batch=settings.batch_size * settings.accumulate,
        accumulate=1,
    )
    test = next(iter(test_sets.values()))
    for images in test_sets.values():
        check_classes(images, len(first.class_names))
        check_same_names(first, images)
    for name, images in train_sets.items():
        with seeded(seed):
            model = Classifier(config).to(device or torch.device("cpu"))
        stage = classifier_stage(
            model, images, test, settings, flip=flip, name=f"train on {name} images"
        )
        try:
            train(
                stage,
                settings,
                out=out / name,
                resume=True,
                progress=progress,
                class_names=images.class_names,
                how_to_continue="by the same call",
            )
        except OtherRunError as error:
            raise ValueError(
                f"{error.what} Delete {out / name} to train that classifier again, or name another "
                "folder."
            ) from error
        found = {
            kind: classification_accuracy(model, in_order(own, _TEST_BATCH))
            for kind, own in test_sets.items()
        }
        rows.append(CasRow(name, len(images), found, model))
    return rows
