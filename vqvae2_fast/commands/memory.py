"""What to do when a training runs out of memory: the settings that help, and what each saves."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.commands.options import options_of
from vqvae2_fast.console.words import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from vqvae2_fast.training import TrainConfig

__all__ = ["explaining_memory"]

_SAVINGS = 3


@contextmanager
def explaining_memory(model: nn.Module, config: TrainConfig, command: type) -> Iterator[None]:
    """Adds to an error of a full memory, of a GPU or of the machine, what would need less.

    Args:
        command: Only settings that are options of this command are named.

    Raises:
        RuntimeError: What failed, with the settings and their savings.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not full and "can't allocate memory" not in str(error):  # on the CPU
            raise
        names = {option.lstrip("-").removeprefix("train.") for option in options_of(command)}
        helps = [saved for name, saved in _savings(model, config) if name in names][:_SAVINGS]
        what = f"What helps: {'; '.join(helps)}. " if helps else ""
        raise RuntimeError(
            f"out of memory with micro-batches of {config.batch_size}. {what}"
            "Continue from a checkpoint, if there is one, with --resume."
        ) from error


def _savings(model: nn.Module, config: TrainConfig) -> list[tuple[str, str]]:
    """The settings that would need less, and what to write and to expect of each."""
    weights = sum(weight.nbytes for weight in model.parameters())
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    copy, moments = (
        f"{number(size / 2**20)} MiB, the size of the {what}"
        for size, what in (
            (weights, "weights"),
            (trained, "weights" if trained == weights else "weights that are trained"),
        )
    )
    found = []
    if config.batch_size > 1:
        least = next(n for n in range(2, config.batch_size + 1) if config.batch_size % n == 0)
        more = "" if config.global_batch else f" and accumulate={config.accumulate * least}"
        smaller = (
            f"batch_size={config.batch_size // least}{more}: the same images in a step, "
            f"1/{least} of the memory for what is kept until the gradients are computed"
        )
        found.append(("batch-size", smaller))
    if config.precision == "float32":
        found.append(("precision", "precision=bfloat16: about half of what is kept until then"))
    if config.average_decay:
        found.append(("average-decay", f"average_decay=0: {copy}"))
    if config.optimizer == "adamw":
        found.append(("optimizer", f"optimizer=momentum, in a new run: {moments}"))
    if not config.recompute and getattr(model, "segments", list)():
        again = "about half or less of what is kept until then, for a third more time"
        found.append(("recompute", f"recompute: {again}"))
    return found
