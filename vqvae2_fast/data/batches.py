"""The order of training: which images make up the batch of a step, as a function of the seed.

Epoch e visits the set in a permutation that depends only on (seed, e) and drops the incomplete
batch at its end. A batch larger than the set takes whole epochs, one after the other. So the
content of a step is a function of the seed, the step and the size of its batch, and training
continues exactly where it stopped when it is given the step. Nothing here depends on worker
processes, nor on how a batch is cut into micro-batches and shared by processes.

A batch is cut into micro-batches, and each of these into the parts of processes (`BatchCut`).
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from vqvae2_fast.data.augment import augment
from vqvae2_fast.data.images import ImageTensorDataset, check_image_source, stable_hash, to_float
from vqvae2_fast.files.kinds import check_field, integer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vqvae2_fast.data.images import CodeSource, ImageSource

__all__ = [
    "BatchCut",
    "batches",
    "check_rank",
    "code_batches",
    "codes_in_order",
    "in_order",
    "shuffled_indices",
]


def check_rank(rank: int, world_size: int) -> None:
    """Raises ValueError unless `rank` is the number of one of `world_size` processes."""
    check_field("rank", rank, integer(0, world_size - 1))


@dataclass(frozen=True)
class BatchCut:
    """The parts that one process takes of a batch: one part of each micro-batch.

    Args:
        batch_size: Items of the whole batch.
        accumulate: Micro-batches, as equal as can be.
        rank, world_size: Number of the process and how many there are; each takes a contiguous
            part of every micro-batch, and all parts are as equal as can be.

    Raises:
        ValueError: A micro-batch has fewer items than there are processes; or there is no
            micro-batch, or no process of this number.
    """

    batch_size: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        check_field("accumulate", self.accumulate, integer(1))
        check_rank(self.rank, self.world_size)
        smallest = self.batch_size // self.accumulate
        if smallest < self.world_size:
            least = self.accumulate * self.world_size
            raise ValueError(
                f"a batch of {self.batch_size} in {self.accumulate} micro-batches leaves "
                f"{smallest} items for {self.world_size} processes; expected a batch of at least "
                f"{least}, or fewer micro-batches or processes."
            )

    def parts(self) -> list[range]:
        """This process's items of each micro-batch, as numbers in the whole batch."""
        found = []
        for number in range(self.accumulate):
            first = self.batch_size * number // self.accumulate
            size = self.batch_size * (number + 1) // self.accumulate - first
            found.append(
                range(
                    first + size * self.rank // self.world_size,
                    first + size * (self.rank + 1) // self.world_size,
                )
            )
        return found


def _check_batch_size(count: int, batch_size: int) -> None:
    check_field("batch_size", batch_size, integer(1, count))


def shuffled_indices(
    count: int, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Endless pairs (epoch, indices int64 [B]) for steps start_step, start_step + 1, ...

    Raises:
        ValueError: batch_size is not in [1, count], or start_step is negative.
    """
    _check_batch_size(count, batch_size)
    check_field("start_step", start_step, integer(0))
    return _steps(count, batch_size, seed, start_step)


def _steps(count: int, batch_size: int, seed: int, start_step: int) -> Iterator[tuple[int, Tensor]]:
    steps_per_epoch = count // batch_size
    epoch, step = divmod(start_step, steps_per_epoch)
    while True:
        order = _permutation(count, seed, epoch)
        for first in range(step * batch_size, steps_per_epoch * batch_size, batch_size):
            yield epoch, order[first : first + batch_size]
        epoch, step = epoch + 1, 0


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(stable_hash(f"order/{seed}/{epoch}"))
    return torch.randperm(count, generator=generator, device="cpu")


def _large_steps(
    count: int, batch_size: int, seed: int, start_step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(epochs, indices), `[B]` both, of batches that are larger than the set."""
    first = start_step * batch_size
    while True:
        stop = first + batch_size
        epochs = range(first // count, -(-stop // count))
        order = torch.cat([_permutation(count, seed, epoch) for epoch in epochs])
        number = torch.arange(first, stop, device="cpu")
        yield number // count, order[number - epochs.start * count]
        first = stop


def _parts(
    count: int, cut: BatchCut, seed: int, start_step: int
) -> Iterator[tuple[int | Tensor, Tensor]]:
    """(epoch or epochs, indices) of a process's parts, from the first of step `start_step` on.

    Raises:
        ValueError: A micro-batch is larger than the set, or start_step is negative.
    """
    most = -(-cut.batch_size // cut.accumulate)
    if cut.batch_size <= count or cut.accumulate == 1:
        plan: Iterator[tuple[int | Tensor, Tensor]] = shuffled_indices(
            count, cut.batch_size, seed=seed, start_step=start_step
        )
    elif most <= count:
        plan = _large_steps(count, cut.batch_size, seed, start_step)
    else:
        raise ValueError(
            f"expected micro-batches of at most the {count} items of the set, got {most} "
            "in all processes."
        )
    parts = cut.parts()
    return (
        (
            epoch if isinstance(epoch, int) else epoch[part.start : part.stop],
            indices[part.start : part.stop],
        )
        for epoch, indices in plan
        for part in parts
    )


def batches(
    dataset: ImageSource,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    flip: bool = False,
    crop_padding: int = 0,
    num_workers: int = 0,
    cut: BatchCut | None = None,
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
        cut: Give this process's parts of the micro-batches of each step in place of whole batches.
            Its batch_size must be that of the batches.

    Yields:
        images float32 `[B, C, H, W]` in [-1, 1], labels int64 `[B]` (-1 where there is none), on
        the device of a set in memory, else on the CPU.

    Raises:
        ValueError: batch_size is not in [1, len(dataset)], start_step or crop_padding is negative.
        TypeError: dataset is no set of images, such as a list.
    """
    check_image_source("dataset", dataset)
    check_field("crop_padding", crop_padding, integer(0))
    cut = _checked(cut, batch_size, len(dataset))
    plan = _parts(len(dataset), cut, seed, start_step)
    # Workers read ahead of training, so they go through a second sequence of the same steps.
    ahead = _parts(len(dataset), cut, seed, start_step)
    read = _reader(dataset, (indices for _, indices in ahead), num_workers)

    def step(epoch: int | Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = read(indices)
        images = augment(
            images, indices, seed=seed, epoch=epoch, flip=flip, crop_padding=crop_padding
        )
        return to_float(images), labels

    return (step(epoch, indices) for epoch, indices in plan)


def code_batches(
    store: CodeSource,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    cut: BatchCut | None = None,
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Endless batches of code maps: a list of int64 `[B, h, w]`, coarse to fine, and labels `[B]`.

    Order, arguments and errors are those of `batches`.
    """
    plan = _parts(len(store), _checked(cut, batch_size, len(store)), seed, start_step)
    return (store.batch(indices) for _, indices in plan)


def _checked(cut: BatchCut | None, batch_size: int, count: int) -> BatchCut:
    if cut is None:
        _check_batch_size(count, batch_size)
        return BatchCut(batch_size)
    if cut.batch_size != batch_size:
        raise ValueError(f"expected a cut of batches of {batch_size}, got one of {cut.batch_size}.")
    return cut


def codes_in_order(
    store: CodeSource, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """All records once, in the store's order; the last batch may be shorter.

    Args:
        rank, world_size: Give every world_size-th batch from number `rank` on: the share of one
            process. Batches do not depend on them.

    Raises:
        ValueError: There is no process of this rank.
    """
    check_rank(rank, world_size)
    order = torch.arange(len(store), device="cpu").split(batch_size)
    return map(store.batch, order[rank::world_size])


def in_order(
    dataset: ImageSource,
    batch_size: int,
    *,
    num_workers: int = 0,
    start: int = 0,
    stop: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images start to stop - 1, or all, once and in the set's order, as float32 batches.

    The last batch may be shorter than the others.

    Args:
        rank, world_size: As in `codes_in_order`.

    Raises:
        ValueError: batch_size is not positive, the range is not one of the set's, or there is no
            process of this rank.
        TypeError: dataset is no set of images, such as a list.
    """
    check_image_source("dataset", dataset)
    check_rank(rank, world_size)
    check_field("batch_size", batch_size, integer(1))
    stop = len(dataset) if stop is None else stop
    if not 0 <= start <= stop <= len(dataset):
        raise ValueError(
            f"start and stop must be a range of the {len(dataset)} images of the set, "
            f"got {start} and {stop}."
        )
    order = torch.arange(start, stop, device="cpu").split(batch_size) if start < stop else ()
    order = order[rank::world_size]
    read = _reader(dataset, iter(order), num_workers)
    return ((to_float(images), labels) for images, labels in map(read, order))


def raw_in_order(
    dataset: ImageSource, batch_size: int, *, num_workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images as `in_order` gives them, but uint8."""
    order = torch.arange(len(dataset), device="cpu").split(batch_size)
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
            _Batches(dataset),
            batch_sampler=(indices.tolist() for indices in ahead),
            num_workers=num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )
    )

    def read_next(indices: Tensor) -> tuple[Tensor, Tensor]:
        batch = next(loader)
        if isinstance(batch, _Failure):
            raise batch.error from RuntimeError(batch.traceback)
        images, labels = batch
        return images, labels

    return read_next


@dataclass(frozen=True)
class _Failure:
    """What a worker process gives in place of a batch that cannot be read."""

    error: ValueError | OSError
    traceback: str


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches of a set, for a loader.

    A worker process returns its errors. Those that it raises get a traceback for their text, and
    lose the name of the file.
    """

    def __init__(self, images: ImageSource) -> None:
        self._images = images

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | _Failure:
        try:
            images, labels = default_collate([self._images[index] for index in indices])
        except (ValueError, OSError) as error:
            if get_worker_info() is None:
                raise
            return _Failure(error, traceback.format_exc())
        return images, labels


def _as_it_is(batch: Any) -> Any:
    return batch
