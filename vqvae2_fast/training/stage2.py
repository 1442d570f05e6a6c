"""Stage 2: the prior of one level. Algorithm 2 of https://arxiv.org/abs/1906.00446."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.data import CodeDataset, code_batches
from vqvae2_fast.metrics import prior_labels, prior_likelihood
from vqvae2_fast.training.loop import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.models.pixelsnail import PixelSNAIL
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["prior_stage"]


def prior_stage(
    prior: PixelSNAIL,
    train_set: CodeDataset,
    held_out: CodeDataset,
    config: TrainConfig,
    *,
    level: int,
    label_dropout: float = 0.1,
    class_balance: float = 0.0,
    name: str = "train prior",
) -> Stage:
    """Cross-entropy of one level's codes, given all coarser levels and the class.

    Validation gives `nats_per_code`, `bits_per_code` and `bits_per_image` on the held-out codes.

    Args:
        level: Which of the maps to model, 0 the coarsest.
        label_dropout: Share of labels replaced by "no class", so that the prior can be guided.
        class_balance: See `balanced`; 0 trains on each record equally often.
    """
    device = next(prior.parameters()).device
    records = balanced(train_set, class_balance)

    def loss(batch: tuple[list[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        maps, labels = batch
        labels = prior_labels(prior, labels.to(device))
        if labels is not None and label_dropout:
            dropped = torch.rand(labels.shape, device=device) < label_dropout
            labels = torch.where(dropped, prior.config.num_classes, labels)
        condition = [codes.to(device) for codes in maps[:level]]
        logits = prior(maps[level].to(device), condition or None, labels)
        nats = F.cross_entropy(logits.float(), maps[level].to(device))
        return nats, {}

    def validate(prior: PixelSNAIL) -> dict[str, float]:
        return asdict(prior_likelihood(prior, held_out_batches(held_out, config.batch_size), level))

    return Stage(
        name=name,
        model=prior,
        batches=lambda first: code_batches(
            records, config.batch_size, seed=config.seed, start_step=first
        ),
        loss=loss,
        validate=validate,
        headline="bits_per_image",
    )


def balanced(codes: CodeDataset, power: float) -> CodeDataset:
    """Codes in which records of rarer classes stand several times.

    Each record of a class of n occurs (n_max / n)^power times, rounded: 0 leaves the set as it is,
    1 gives all classes about the size of the largest. Records without a label occur once.

    Raises:
        ValueError: If power is outside [0, 1].
    """
    if not 0 <= power <= 1:
        raise ValueError(f"prior_stage: class_balance must be in [0, 1], got {power}.")
    if power == 0 or not codes.class_names:
        return codes
    sizes = torch.bincount(codes.labels + 1, minlength=len(codes.class_names) + 1).double()
    times = (sizes[1:].max() / sizes).pow(power).round().clamp(min=1)  # [1 + classes]
    times[0] = 1  # no label
    rows = torch.arange(len(codes)).repeat_interleave(times[codes.labels + 1].long())
    return CodeDataset(
        [maps[rows] for maps in codes.codes], codes.num_embeddings, codes.labels[rows],
        codes.class_names, codes.checkpoint_hash,
    )  # fmt: skip


def held_out_batches(
    dataset: CodeDataset, batch_size: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """All records in order; the last batch is as short as it comes."""
    for indices in torch.arange(len(dataset)).split(batch_size):
        yield dataset.batch(indices)
