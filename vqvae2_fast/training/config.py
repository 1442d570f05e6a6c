"""Settings that every training run has, and the learning rate that follows from them.

Everything counts steps, never seconds: two runs with the same settings and seed are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from vqvae2_fast.data.batches import BatchCut
from vqvae2_fast.runs.ranks import Ranks

__all__ = ["TrainConfig", "learning_rate", "step_seed"]

OptimizerName = Literal["adamw", "momentum", "muon"]
Schedule = Literal["cosine", "steps"]
Precision = Literal["auto", "float32", "bfloat16"]

_NAMES = {
    "optimizer": get_args(OptimizerName),
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
}
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
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "log_every",
            "validate_every",
            "save_every",
            "keep",
        ):
            if not getattr(self, name) >= 1:  # so that NaN is refused too
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        for name in (
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "validate_items",
            "workers",
            "global_batch",
            "seed",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}.")
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            if getattr(self, name) == math.inf:
                remedy = " Use 0 to leave gradients as they are." if name == "max_grad_norm" else ""
                raise ValueError(f"{name} must be finite, got inf.{remedy}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and type(value) is not int:
                raise ValueError(f"{field.name} must be an integer, got {value!r}.")
        for name, known in _NAMES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        if self.seed >= 2**64:
            raise ValueError(f"seed must be < 2^64, got {self.seed}.")
        if self.global_batch and self.accumulate > 1:
            raise ValueError(
                "expected accumulate or global_batch, from which it follows, got "
                f"{self.accumulate} and {self.global_batch}."
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}.")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(
                "final_learning_rate must be in [0, 1], a fraction of learning_rate, "
                f"got {self.final_learning_rate}."
            )
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be in [0, 1), got {self.average_decay}.")

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
    """Rate of a step, counted from 0: linear warm-up, then half a cosine down to the final rate, or
    the constant parts of schedule `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "steps":
        passed = sum(90 * step >= part * config.steps for part in _TENTHS)
        return config.learning_rate * 0.1**passed
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * cosine)


def step_seed(seed: int, step: int) -> int:
    """Seed of one step's random numbers, so that a resumed run draws what an uninterrupted one
    would.

    The multiplier is odd, so for one seed no two steps below 2^62 share a value.
    """
    return (seed * 0x9E3779B97F4A7C15 + step * 0xD1342543DE82EF95 + 1) & 0x3FFFFFFFFFFFFFFF
