"""The order of training: which images make up the batch of a step, as a function of the seed.

Epoch e visits the set in a permutation that depends on (seed, e) alone and drops the incomplete
batch at its end. So the content of a step is a function of the seed and the step, and training
goes on exactly where it stopped by naming the step. Nothing here depends on worker processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vqvae2_fast.data.images import ImageTensorDataset, stable_hash, to_float

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.data.codes import CodeDataset
    from vqvae2_fast.data.folder import ImageFolder

__all__ = ["batches", "code_batches", "in_order", "shuffled_indices"]


def shuffled_indices(
    count: int, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (indices int64 [B], flips bool [B]) of steps start_step, start_step + 1, ...

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


def _steps(
    count: int, batch_size: int, seed: int, start_step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    steps_per_epoch = count // batch_size
    epoch, step = divmod(start_step, steps_per_epoch)
    while True:
        generator = torch.Generator().manual_seed(stable_hash(f"order/{seed}/{epoch}"))
        order = torch.randperm(count, generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        for first in range(step * batch_size, steps_per_epoch * batch_size, batch_size):
            yield order[first : first + batch_size], flips[first : first + batch_size]
        epoch, step = epoch + 1, 0


def batches(
    dataset: ImageTensorDataset | ImageFolder,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    flip: bool = False,
    num_workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless training batches; step s has the same content however it is reached.

    Args:
        dataset: Images in memory, or a folder.
        batch_size: B, images a step.
        seed: Seed of order and flips.
        start_step: The first step to give, to resume.
        flip: Mirror each image left to right with probability 1/2.
        num_workers: Processes that decode a folder's images; 0 decodes in this one.

    Yields:
        images float32 `[B, C, H, W]` in [-1, 1], labels int64 `[B]` (-1 where there is none), on
        the device of a set in memory, else on the CPU.

    Raises:
        ValueError: batch_size is not in [1, len(dataset)], or start_step is negative.
    """
    plan = shuffled_indices(len(dataset), batch_size, seed=seed, start_step=start_step)
    if isinstance(dataset, ImageTensorDataset):
        return _memory_batches(dataset, plan, flip)
    # Workers read ahead of training, so that they follow a plan of their own, with the same steps.
    ahead = shuffled_indices(len(dataset), batch_size, seed=seed, start_step=start_step)
    return _folder_batches(dataset, plan, ahead, flip, num_workers)


def code_batches(
    dataset: CodeDataset, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Endless batches of code maps: a list of int64 `[B, h, w]`, coarse to fine, and labels `[B]`.

    Order, arguments and errors are those of `batches`.
    """
    plan = shuffled_indices(len(dataset), batch_size, seed=seed, start_step=start_step)
    return (dataset.batch(indices) for indices, _ in plan)


def in_order(
    dataset: ImageTensorDataset | ImageFolder, batch_size: int, *, num_workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image once, in the set's order, the last batch as short as it comes; else as `batches`.

    Raises:
        ValueError: batch_size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"in_order: batch_size must be >= 1, got {batch_size}.")
    order = torch.split(torch.arange(len(dataset)), batch_size)
    plan = iter([(indices, torch.zeros(len(indices), dtype=torch.bool)) for indices in order])
    if isinstance(dataset, ImageTensorDataset):
        return _memory_batches(dataset, plan, flip=False)
    ahead = iter([(indices, indices) for indices in order])
    return _folder_batches(dataset, plan, ahead, False, num_workers)


def _memory_batches(
    dataset: ImageTensorDataset, plan: Iterator[tuple[Tensor, Tensor]], flip: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    for indices, flips in plan:
        images = dataset.images[indices.to(dataset.images.device)]
        labels = dataset.labels[indices.to(dataset.labels.device)]
        yield _finish(images, flips, flip), labels


def _folder_batches(
    dataset: ImageFolder,
    plan: Iterator[tuple[Tensor, Tensor]],
    ahead: Iterator[tuple[Tensor, Tensor]],
    flip: bool,
    num_workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    sampler = (indices.tolist() for indices, _ in ahead)
    # With a generator of its own the loader leaves torch's global one, the model's, alone.
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    for (images, labels), (_, flips) in zip(loader, plan, strict=False):
        yield _finish(images, flips, flip), labels


def _finish(images: Tensor, flips: Tensor, flip: bool) -> Tensor:
    """uint8 `[B, C, H, W]` to float in [-1, 1], mirrored where flips says so."""
    if flip:
        mirror = flips.to(images.device).view(-1, 1, 1, 1)  # [B] -> [B, 1, 1, 1]
        images = torch.where(mirror, images.flip(-1), images)
    return to_float(images)
