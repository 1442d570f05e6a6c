"""What a stage of training brings to the loop: its model, its batches and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from vqvae2_fast.ops._batch_part import BatchPart
    from vqvae2_fast.runs.ranks import Ranks
    from vqvae2_fast.training.companions import Companion
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["Stage", "check_companion"]


@dataclass(frozen=True)
class Stage:
    """What a stage brings to the loop. Its functions are given the model and hold none.

    Args:
        name: Shown next to the progress.
        model: Trained in place, on its own device.
        batches: This process's parts of the micro-batches of the given step and all later ones, as
            `TrainConfig.cut` cuts a step's batch.
        loss: From the model (or a wrapper that calls its forward) and a collated batch to the loss
            to descend and named values to log, all 0-d and means over the batch.
        validate: From the model (with averaged weights, in evaluation mode) to metrics, the same on
            all processes.
        headline: The metric of `validate` that is shown next to the progress and that says which
            checkpoint is the best.
        before_step: Called with the model, the micro-batches of a step and where they stand in its
            batch, before the first forward of a step of several micro-batches.
        after_step: Called with the model once after each optimiser step.
        lower_is_better: Whether the best `headline` is the lowest.
        companion: What is trained beside the model, in one process only: kept in the checkpoints.
        identity: What the result depends on in addition to model and settings, ready for JSON:
            hashes of the data, and how they are augmented.
    """

    name: str
    model: nn.Module
    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]]
    validate: Callable[[Any], dict[str, float]]
    headline: str
    before_step: Callable[[Any, list[Any], list[BatchPart]], object] = lambda *_: None
    after_step: Callable[[Any], object] = lambda model: None
    lower_is_better: bool = False
    companion: Companion | None = None
    identity: Callable[[], dict[str, Any]] = dict


def check_companion(stage: Stage, config: TrainConfig, ranks: Ranks) -> None:
    """Checks that a stage with a companion can run as it is to run.

    Raises:
        NotImplementedError: In several processes.
        ValueError: Compiled, although the companion does not allow it.
    """
    companion = stage.companion
    if companion is None:
        return
    if ranks.count > 1:
        raise NotImplementedError(
            f"a {companion.what} trains in one process, got {ranks.count}. Use one, or no "
            f"{companion.what}."
        )
    if config.compile and companion.needs_eager:
        raise ValueError(
            f"compile does not work with a {companion.what}. Turn it off, or use no "
            f"{companion.what}: {companion.group}.weight=0."
        )
