"""A run's figures for TensorBoard, if its package is installed."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

__all__ = ["tensorboard_log"]


@contextmanager
def tensorboard_log(run: Path | None) -> Iterator[Callable[[int, Mapping[str, float]], object]]:
    """Takes a step and its figures, as `train(on_log=...)` gives them, into RUN/tensorboard.

    Without a run it drops them, and needs no package.

    Raises:
        RuntimeError: The package `tensorboard` is not installed.
    """
    if run is None:
        yield lambda step, values: None
        return
    if find_spec("tensorboard") is None:
        raise RuntimeError(
            "the package tensorboard is not installed: pip install 'vqvae2_fast[tensorboard]'"
        )
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None

    def log(step: int, values: Mapping[str, float]) -> None:
        nonlocal writer
        if writer is None:
            # An interrupted part may have logged steps after its last checkpoint; they are removed.
            writer = SummaryWriter(str(run / "tensorboard"), purge_step=step)
        for name, value in values.items():
            held_out = name.startswith("val_")
            tag = f"held_out/{name.removeprefix('val_')}" if held_out else f"train/{name}"
            writer.add_scalar(tag, value, step)

    try:
        yield log
    finally:
        if writer is not None:
            writer.close()
