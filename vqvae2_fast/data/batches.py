"""The order of training: which images make up the batch of a step, as a function of the seed.

Epoch e visits the set in a permutation that depends only on (seed, e) and drops the incomplete
batch at its end. So the content of a step is a function of the seed and the step, and training
continues exactly where it stopped when it is given the step. Nothing here depends on worker
processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vqvae2_fast.data.augment import augment
from vqvae2_fast.data.images import ImageTensorDataset, stable_hash, to_float

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vqvae2_fast.data.code_store import CodeStore

__all__ = [
    "ImageSource",
    "batches",
    "code_batches",
    "codes_in_order",
    "in_order",
    "shuffled_indices",
]


class ImageSource(Protocol):
    """A set of images to train on: an `ImageTensorDataset`, an `ImageFolder`, ... or your own.

    An item is one image, uint8 `[C, H, W]`, and its label; `labels` is int64 `[N]`, -1 for none.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


def shuffled_indices(
    count: int, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Endless pairs (epoch, indices int64 [B]) for steps start_step, start_step + 1, ...

    Raises:
        ValueError: batch_size is not in [1, count], or start_step is negative.
    """
    if not 1 <= batch_size <= count:
        raise ValueError(
            f"batches: batch_size must be between 1 and the {count} items of the set, "
            f"got {batch_size}."
        )
    if start_step < 0:
        raise ValueError(f"batches: start_step must be >= 0, got {start_step}.")
    return _steps(count, batch_size, seed, start_step)


def _steps(count: int, batch_size: int, seed: int, start_step: int) -> Iterator[tuple[int, Tensor]]:
    steps_per_epoch = count // batch_size
    epoch, step = divmod(start_step, steps_per_epoch)
    while True:
        generator = torch.Generator().manual_seed(stable_hash(f"order/{seed}/{epoch}"))
        order = torch.randperm(count, generator=generator)
        for first in range(step * batch_size, steps_per_epoch * batch_size, batch_size):
            yield epoch, order[first : first + batch_size]
        epoch, step = epoch + 1, 0


def batches(
    dataset: ImageSource,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    flip: bool = False,
    crop_padding: int = 0,
    num_workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless training batches; step s has the same content however it is reached.

    Args:
        dataset: Images in memory, or a source that decodes them, such as a folder.
        batch_size: B, images per step.
        seed: Seed of order and augmentation.
        start_step: The first step to give, to resume.
        flip: Mirror each image left to right with probability 1/2.
        crop_padding: Pad each side by this many pixels, then crop each image at random.
        num_workers: Processes that decode images; 0 decodes in this one. Not used for a set that is
            in memory or mapped there.

    Yields:
        images float32 `[B, C, H, W]` in [-1, 1], labels int64 `[B]` (-1 where there is none), on
        the device of a set in memory, else on the CPU.

    Raises:
        ValueError: batch_size is not in [1, len(dataset)], start_step or crop_padding is negative.
    """
    if crop_padding < 0:
        raise ValueError(f"batches: crop_padding must be >= 0, got {crop_padding}.")
    plan = shuffled_indices(len(dataset), batch_size, seed=seed, start_step=start_step)
    # Workers read ahead of training, so they go through a second sequence of the same steps.
    ahead = shuffled_indices(len(dataset), batch_size, seed=seed, start_step=start_step)
    read = _reader(dataset, (indices for _, indices in ahead), num_workers)

    def step(epoch: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = read(indices)
        images = augment(
            images, indices, seed=seed, epoch=epoch, flip=flip, crop_padding=crop_padding
        )
        return to_float(images), labels

    return (step(epoch, indices) for epoch, indices in plan)


def code_batches(
    store: CodeStore, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Endless batches of code maps: a list of int64 `[B, h, w]`, coarse to fine, and labels `[B]`.

    Order, arguments and errors are those of `batches`.
    """
    plan = shuffled_indices(len(store), batch_size, seed=seed, start_step=start_step)
    return (store.batch(indices) for _, indices in plan)


def codes_in_order(store: CodeStore, batch_size: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """All records once, in the store's order; the last batch may be shorter."""
    return map(store.batch, torch.arange(len(store)).split(batch_size))


def in_order(
    dataset: ImageSource,
    batch_size: int,
    *,
    num_workers: int = 0,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images start to stop - 1, or all, once and in the set's order, as float32 batches.

    The last batch may be shorter than the others.

    Raises:
        ValueError: batch_size is not positive, or the range is not one of the set's.
    """
    if batch_size < 1:
        raise ValueError(f"in_order: batch_size must be >= 1, got {batch_size}.")
    stop = len(dataset) if stop is None else stop
    if not 0 <= start <= stop <= len(dataset):
        raise ValueError(
            f"in_order: start and stop must be a range of the {len(dataset)} images of the set, "
            f"got {start} and {stop}."
        )
    order = torch.arange(start, stop).split(batch_size) if start < stop else ()
    read = _reader(dataset, iter(order), num_workers)
    return ((to_float(images), labels) for images, labels in map(read, order))


def raw_in_order(
    dataset: ImageSource, batch_size: int, *, num_workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images as `in_order` gives them, but uint8."""
    order = torch.arange(len(dataset)).split(batch_size)
    return map(_reader(dataset, iter(order), num_workers), order)


def _reader(
    dataset: ImageSource, ahead: Iterator[Tensor], num_workers: int
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function from indices to images uint8 `[B, C, H, W]` and labels `[B]`.

    It is called with the indices of `ahead`, in that order.
    """
    if isinstance(dataset, ImageTensorDataset):

        def read(indices: Tensor) -> tuple[Tensor, Tensor]:
            images, labels = dataset.images, dataset.labels
            return images[indices.to(images.device)], labels[indices.to(labels.device)]

        return read
    # With its own generator the loader does not advance torch's global one, which the model uses.
    loader = iter(
        DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=(indices.tolist() for indices in ahead),
            num_workers=num_workers,
            generator=torch.Generator(),
        )
    )
    return lambda indices: next(loader)
