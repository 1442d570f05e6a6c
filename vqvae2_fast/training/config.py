"""Settings that every training run has, and the learning rate that follows from them.

Everything counts steps, never seconds: two runs with the same settings and seed are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from vqvae2_fast.data.batches import BatchCut
from vqvae2_fast.files.kinds import check_fields, integer, number, one_of
from vqvae2_fast.runs.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TrainConfig", "learning_rate", "step_seed"]

OptimizerName = Literal["adamw", "momentum", "muon"]
Schedule = Literal["cosine", "steps"]
Precision = Literal["auto", "float32", "bfloat16"]

_TENTHS = (30, 60, 80)  # epochs of 90 after which the rate falls, https://arxiv.org/abs/1706.02677


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast a stage trains.

    Args:
        steps: Optimiser steps.
        batch_size: Images (or code maps) of one micro-batch.
        accumulate: Micro-batches whose gradients add up to one step.
        global_batch: Images of one step in all processes; accumulate then follows, so that no
            process takes more than batch_size at a time. 0: batch_size × accumulate × processes.
        optimizer: `adamw`; `muon`, which makes the steps of matrices and convolutions orthogonal
            (see `Muon`); or `momentum`: SGD with a momentum of 0.9.
        schedule: What follows the warm-up: `cosine`, or `steps`: the rate falls to a tenth after
            30/90, 60/90 and 80/90 of the run.
        learning_rate: Peak rate of the optimiser, reached after the warm-up.
        warmup_steps: Steps of the linear warm-up.
        final_learning_rate: Rate at the end of the cosine, as a fraction of the peak rate.
        weight_decay: Weight decay of matrices and convolutions; biases and gains have none.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them as they are.
        average_decay: Decay of the Polyak average of the weights; 0 keeps none.
        log_every: Steps between lines of log.jsonl.
        validate_every: Steps between validations; one more follows the last step.
        validate_items: Held-out images (or records of codes) that a validation takes, spread evenly
            over the set; 0 takes all.
        save_every: Steps between checkpoints; one more follows the last step, and each validation
            that is the best so far.
        keep: Number of newest checkpoints to keep next to the best one; older ones are deleted.
        workers: Processes that load data; 0 loads in this one.
        precision: `bfloat16` runs the networks under autocast; `auto` does so where that is faster:
            on GPUs and processors that compute in it. A PixelSNAIL on a processor stays in float32,
            but for the factors of its 3×3 convolutions, which are rounded to bfloat16 where there
            is AMX. The loss with LPIPS, the codebooks and validation stay in float32; a
            discriminator is one of the networks.
        seed: Seed of the order of the data, dropout and augmentation.
        recompute: Activation checkpointing: the model's segments are computed again for their
            gradients instead of being kept. A step takes about a third longer.
        compile: `torch.compile` the model's segments one by one, each as a single graph.
        shard: Of a prior in several processes: each keeps its share of weights, gradients, moments
            and average (FSDP2) and writes its shard of a checkpoint, while training goes on.
    """

    steps: int = 10_000
    batch_size: int = 32
    accumulate: int = 1
    global_batch: int = 0
    optimizer: OptimizerName = "adamw"
    schedule: Schedule = "cosine"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_learning_rate: float = 0.02
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    average_decay: float = 0.0
    log_every: int = 20
    validate_every: int = 500
    validate_items: int = 0
    save_every: int = 500
    keep: int = 2
    workers: int = 0
    precision: Precision = "float32"
    seed: int = 0
    recompute: bool = False
    compile: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        at_least_1, at_least_0 = integer(1), integer(0)
        check_fields(
            self,
            steps=at_least_1,
            batch_size=at_least_1,
            accumulate=at_least_1,
            global_batch=at_least_0,
            optimizer=one_of(get_args(OptimizerName)),
            schedule=one_of(SCHEDULES),
            learning_rate=number(above=0),
            warmup_steps=at_least_0,
            final_learning_rate=number(0, 1),
            weight_decay=number(0),
            max_grad_norm=number(0),
            average_decay=number(0, below=1),
            log_every=at_least_1,
            validate_every=at_least_1,
            validate_items=at_least_0,
            save_every=at_least_1,
            keep=at_least_1,
            workers=at_least_0,
            precision=one_of(get_args(Precision)),
            seed=integer(0, 2**64 - 1),
        )
        if self.global_batch and self.accumulate > 1:
            raise ValueError(
                "expected accumulate or global_batch, from which it follows, got "
                f"{self.accumulate} and {self.global_batch}."
            )

    def cut(self, rank: int = 0, world_size: int = 1) -> BatchCut:
        """The parts of a step's batch that one of several processes takes.

        Raises:
            ValueError: There are more processes than items of a micro-batch.
        """
        at_a_time = self.batch_size * world_size
        if not self.global_batch:
            return BatchCut(at_a_time * self.accumulate, self.accumulate, rank, world_size)
        return BatchCut(self.global_batch, -(-self.global_batch // at_a_time), rank, world_size)

    def cut_of_group(self) -> BatchCut:
        """That of this process, in the default group of `torch.distributed` if there is one."""
        ranks = Ranks.of_group()
        return self.cut(ranks.rank, ranks.count)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of a step, counted from 0: linear warm-up, then as the schedule says."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    return config.learning_rate * SCHEDULES[config.schedule](step, config)


def _cosine(step: int, config: TrainConfig) -> float:
    """Half a cosine from 1 down to `final_learning_rate`."""
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    floor = config.final_learning_rate
    return floor + (1 - floor) * cosine


def _tenths(step: int, config: TrainConfig) -> float:
    """A tenth of the rate after each of `_TENTHS`."""
    passed = sum(90 * step >= part * config.steps for part in _TENTHS)
    return 0.1**passed


# The part of the peak rate at a step after the warm-up. A schedule is a function and a line here,
# and a name in `Schedule`, from which the command line takes its choices.
SCHEDULES: dict[Schedule, Callable[[int, TrainConfig], float]] = {
    "cosine": _cosine,
    "steps": _tenths,
}


def step_seed(seed: int, step: int) -> int:
    """Seed of one step's random numbers, so that a resumed run draws what an uninterrupted one
    would.

    The multiplier is odd, so for one seed no two steps below 2^62 share a value.
    """
    return (seed * 0x9E3779B97F4A7C15 + step * 0xD1342543DE82EF95 + 1) & 0x3FFFFFFFFFFFFFFF
