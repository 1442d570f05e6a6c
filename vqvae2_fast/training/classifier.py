"""Training of a classifier on labelled images, and the classification accuracy score.

The score says how well a classifier learns from generated images, https://arxiv.org/abs/1905.10887:
replace every training image by a generated one of its class, train, test on real images. Unlike an
Inception score or a Fréchet distance it falls when a class lacks variety, whatever its images look
like.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.data import in_order
from vqvae2_fast.files.kinds import check_field, integer
from vqvae2_fast.metrics.accuracy import Accuracy, classification_accuracy
from vqvae2_fast.models.classifier import Classifier, ClassifierConfig
from vqvae2_fast.modules.contexts import device_of, seeded
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.config import TrainConfig
from vqvae2_fast.training.images import (
    check_classes,
    check_not_empty,
    check_same_names,
    identity_of_images,
    own_batches,
    validation_set,
)
from vqvae2_fast.training.loop import train
from vqvae2_fast.training.stage import Stage
from vqvae2_fast.training.state import OtherRunError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vqvae2_fast.console.progress import Progress
    from vqvae2_fast.data import ImageSource

__all__ = [
    "CasRow",
    "check_classes",
    "classification_accuracy_score",
    "classifier_recipe",
    "classifier_stage",
]


_IMAGENET_EPOCHS, _IMAGENET_WARMUP, _IMAGENET_BATCH = 90, 5, 1024


def classifier_recipe(
    image_shape: tuple[int, int, int],
    num_classes: int,
    images: int,
    *,
    epochs: int | None = None,
    steps: int | None = None,
) -> tuple[ClassifierConfig, TrainConfig]:
    """The network and its training for a set.

    From 128 pixels on this is ResNet-50 as in https://arxiv.org/abs/1905.10887: 90 epochs with
    momentum; the rate rises to 0.4 within 5 epochs and falls to a tenth after 30, 60 and 80. Other
    numbers of epochs change these in proportion. The batch is 1024, in micro-batches of 64 images;
    its accuracy is within 0.4 % of that of their 8192. Smaller images get a small network and
    AdamW, in float32, because its convolutions of few channels gain nothing from autocast. From 48
    pixels on it halves the image first, which takes a fifth of the time.

    Args:
        image_shape: (C, H, W).
        images: Number of images in the training set.
        epochs: Passes over the training set; by default 90 of ResNet-50, 10 of the small network.
        steps: In place of epochs: steps in all.

    Raises:
        ValueError: Epochs or steps below 1.
    """
    for name, value in (("epochs", epochs), ("steps", steps)):
        if value is not None:
            check_field(name, value, integer(1))
    channels, height, width = image_shape
    if min(height, width) >= 128:
        epoch = max(1, images // _IMAGENET_BATCH)  # steps
        steps = steps or (epochs or _IMAGENET_EPOCHS) * epoch
        return (
            ClassifierConfig((height, width), channels, num_classes, "resnet50"),
            TrainConfig(
                steps=steps,
                batch_size=64,
                accumulate=_IMAGENET_BATCH // 64,
                optimizer="momentum",
                schedule="steps",
                learning_rate=0.4,
                warmup_steps=steps * _IMAGENET_WARMUP // _IMAGENET_EPOCHS,
                weight_decay=1e-4,
                max_grad_norm=0,
                precision="auto",
                validate_every=5 * epoch,
                save_every=epoch,
            ),
        )
    batch = min(64, images)
    steps = steps or max(1, images * (epochs or 10) // batch)
    return (
        ClassifierConfig(
            (height, width),
            channels,
            num_classes,
            "small",
            24,
            0.2,
            first_stride=2 if min(height, width) >= 48 else 1,
        ),
        TrainConfig(
            steps=steps,
            batch_size=batch,
            learning_rate=3e-3,
            weight_decay=0.05,
            warmup_steps=min(100, steps // 10),
            validate_every=max(1, steps // 5),
            save_every=max(1, steps // 5),
        ),
    )


def classifier_stage(
    model: Classifier,
    train_set: ImageSource,
    held_out: ImageSource,
    config: TrainConfig,
    *,
    flip: bool = False,
    crop_padding: int = 0,
    name: str = "train classifier",
) -> Stage:
    """Cross-entropy of the label. Validation gives `accuracy` and `top5` on the held-out images.

    Args:
        flip, crop_padding: See `batches`.

    Raises:
        ValueError: Images without labels, or of other classes than the model has.
    """
    check_not_empty("train_set", train_set)
    check_not_empty("held_out", held_out)
    check_classes(train_set, model.config.num_classes)
    check_classes(held_out, model.config.num_classes)
    check_same_names(train_set, held_out)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        device = device_of(model)
        logits = model(images.to(device, memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels.to(device)), {}

    validation = validation_set(held_out, config)

    def validate(model: Classifier) -> dict[str, float]:
        ranks = Ranks.of_group()
        own = in_order(validation, 4 * config.batch_size, rank=ranks.rank, world_size=ranks.count)
        hits = torch.zeros(2, dtype=torch.int64, device=device_of(model))
        if (first := next(own, None)) is not None:
            found = classification_accuracy(model, chain([first], own))
            hits += torch.tensor(
                [round(share * found.images) for share in (found.top1, found.top5)],
                dtype=torch.int64,
                device="cpu",
            ).to(hits)
        top1, top5 = (count / len(validation) for count in ranks.sum_(hits).tolist())
        return {"accuracy": top1, "top5": top5}

    return Stage(
        name=name,
        model=model,
        batches=own_batches(train_set, config, flip=flip, crop_padding=crop_padding),
        loss=loss,
        validate=validate,
        headline="accuracy",
        after_step=_average_norms_,
        identity=lambda: {
            **identity_of_images(train_set, held_out, flip=flip),
            "crop_padding": crop_padding,
        },
    )


@torch.no_grad()
def _average_norms_(model: Classifier) -> None:
    """Make the running statistics of batch norms those of all processes, by their mean.

    In a step each process normalises by its own images, as is usual
    (https://arxiv.org/abs/1706.02677, section 3): what a classifier learns depends on the size of
    the parts.
    """
    ranks = Ranks.of_group()
    running = [value for value in model.buffers() if value.is_floating_point()]
    if ranks.count == 1 or not running:
        return
    flat = ranks.sum_(torch.cat([value.flatten() for value in running])) / ranks.count
    for value, mean in zip(running, flat.split([v.numel() for v in running]), strict=True):
        value.copy_(mean.view_as(value))


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
                how_to_continue="with the same arguments",
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
