"""What the stages that take images share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vqvae2_fast.data import batches, fingerprint
from vqvae2_fast.data.images import check_image_source, spread_evenly
from vqvae2_fast.files.printable import short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sized

    from torch import Tensor

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.models.vqvae2 import VQVAE2
    from vqvae2_fast.training.config import TrainConfig

__all__ = [
    "check_classes",
    "check_images",
    "check_not_empty",
    "check_same_names",
    "identity_of_images",
    "own_batches",
    "validation_set",
]


def check_not_empty(argument: str, items: Sized) -> None:
    """Raises ValueError for a set without items, which would only show at the first validation."""
    if not len(items):
        raise ValueError(f"expected {argument} to have at least one item, got none.")


def check_images(model: VQVAE2, dataset: ImageSource, argument: str) -> None:
    """Raises ValueError unless the images of a set have the size and channels of the model, and
    TypeError for what is no set of images."""
    check_image_source(argument, dataset)
    check_not_empty(argument, dataset)
    expected = (model.config.image_channels, *model.config.image_size)
    if dataset.image_shape != expected:
        raise ValueError(
            f"expected images of {argument} to be [C, H, W] = {list(expected)} as in "
            f"the model's configuration, got {list(dataset.image_shape)}."
        )


def own_batches(
    images: ImageSource, config: TrainConfig, *, flip: bool, crop_padding: int = 0
) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """`Stage.batches` of a training set, augmented as by `batches`."""

    def from_step(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        cut = config.cut_of_group()
        return batches(
            images,
            cut.batch_size,
            seed=config.seed,
            start_step=first,
            flip=flip,
            crop_padding=crop_padding,
            num_workers=config.workers,
            cut=cut,
        )

    return from_step


def validation_set(held_out: ImageSource, config: TrainConfig) -> ImageSource:
    """The held-out images that a validation takes: `validate_items` of them, or all."""
    return spread_evenly(held_out, config.validate_items) if config.validate_items else held_out


def identity_of_images(
    train_set: ImageSource, held_out: ImageSource, *, flip: bool
) -> dict[str, Any]:
    """What `Stage.identity` says of the images."""
    return {
        "images": fingerprint(train_set),
        "held_out_images": fingerprint(held_out),
        "flip": flip,
    }


def check_same_names(first: ImageSource, second: ImageSource) -> None:
    """Raises ValueError if a label means different classes in two sets of images."""
    names, others = tuple(first.class_names), tuple(second.class_names)
    for number, (name, other) in enumerate(zip(names, others, strict=True)):
        if name != other:
            raise ValueError(
                f"expected the same classes in all sets of images, got label {number} for "
                f"{name!r} and {other!r}; give all sets the same subfolders."
            )


def check_classes(images: ImageSource, num_classes: int | None = None) -> None:
    """Raises ValueError if images lack labels, or there are not as many classes as expected."""
    found = len(images.class_names)
    if not found or bool((images.labels < 0).any()):
        missing = int((images.labels < 0).sum())
        raise ValueError(
            f"expected a label for every image, {missing} of {len(images)} have none; put "
            "the images into one subfolder per class."
        )
    if num_classes is not None and found != num_classes:
        raise ValueError(
            f"the classifier has {num_classes} classes, the images {found} "
            f"({short(', '.join(images.class_names))}); "
            "take a classifier trained on these classes (`vqvae2-fast train-classifier`)."
        )
