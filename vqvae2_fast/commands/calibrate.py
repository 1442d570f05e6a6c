"""`vqvae2-fast calibrate`: what engine cpu_w8a8 needs to know of a pipeline's priors."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vqvae2_fast.checkpoints import save
from vqvae2_fast.checkpoints.files import check_replaceable
from vqvae2_fast.commands.common import Command, ModelOptions, Result, check_one_store
from vqvae2_fast.data import CodeStore
from vqvae2_fast.data.code_store import check_matches
from vqvae2_fast.data.groups import labels_of_prior
from vqvae2_fast.data.images import evenly
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.models.weights_hash import check_codes_of
from vqvae2_fast.sampling import calibrate

__all__ = ["Calibrate"]

_BATCH = 32


@dataclass(kw_only=True)
class Calibrate(Command):
    """Measure the activations of priors on code maps, for engine cpu_w8a8, and save them to
    OUT.

    The engine multiplies int8 by int8: it is faster and draws from a slightly different prior.
    """

    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    codes: Path = Path("runs/codes/train")
    """A code store that `vqvae2-fast extract` wrote: OUT/train."""
    records: int = 256
    """Records of the store to measure, spread evenly over it."""
    margin: float | None = None
    """The range of an input as a multiple of the largest value seen, at least 1. By default the
    multiple from 0.5 to 1 whose rounding has the least squared error is taken for each input."""
    out: Path = Path("runs/calibrated")
    """Folder of the pipeline with its calibration."""

    def run(self) -> Result:
        self.check_one_process()
        if self.records < 1:
            raise ValueError(f"--records: expected 1 or more, got {self.records}.")
        check_replaceable(self.out)
        check_one_store(self.codes)
        device = self.prepare_on_cpu()
        pipeline = self.model.open(device)
        store = CodeStore(self.codes)
        check_codes_of(pipeline.networks()[0], str(self.codes), store.checkpoint_hash)
        chosen = evenly(len(store), self.records)
        for level, prior in enumerate(pipeline.priors):
            assert isinstance(prior, Prior)  # of a checkpoint
            check_matches(store, prior.config)
            classes, parts = prior.config.num_classes, prior.config.num_subclasses
            labels_of, batches = labels_of_prior(store.class_names, classes, parts), []
            for rows in chosen.split(_BATCH):
                maps, labels = store.batch(rows)
                told = labels_of[labels] if classes else None
                batches.append((maps[level], maps[:level], told))
            calibrate(prior, batches, margin=self.margin)
        save(pipeline, self.out)
        quoted = shlex.quote(str(self.out))
        return Result(
            {"out": str(self.out), "records": len(chosen)},
            [
                f"priors calibrated on {len(chosen)} records of {self.codes}: {self.out}",
                f"draw: vqvae2-fast sample --pipeline {quoted} --engine cpu_w8a8",
            ],
        )
