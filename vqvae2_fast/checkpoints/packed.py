"""Files of packed weights beside those of a checkpoint, so that a first draw need not pack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast.checkpoints.checkpoint import load
from vqvae2_fast.checkpoints.locate import checkpoint_folder
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.engines.cpu import ENGINES, weights_of
from vqvae2_fast.sampling.engines.cpu_file import is_packed_from, packed_name, write_packed
from vqvae2_fast.sampling.engines.cpu_pack import described_plan
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.sampling.prior import checked_interface, plan_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from vqvae2_fast.sampling.engines.cpu_description import Description

__all__ = ["pack", "packed_engines"]


def pack(path: str | os.PathLike[str], engine: str = "cpu") -> list[Path]:
    """Write the packed weights of a checkpoint's priors to files beside their weights.

    A prior that `load` makes from the checkpoint then maps its file in the first draw of that
    engine. All processes share the pages, and none has to pack. A prior whose weights have changed
    packs as before. `save` at the same path removes the files. Do not write into them, or over
    them in place, while processes draw: that can end these processes.

    Args:
        path: A pipeline, a prior, or the run of one, as `load` takes it.
        engine: `cpu`, `cpu_bfloat16`, `cpu_int8` or `cpu_w8a8`, which needs a calibration.

    Returns:
        The files, each `packed-ENGINE.safetensors`, coarse to fine. Packed float32 weights are
        about as large as model.safetensors.

    Raises:
        ValueError: Another engine, or a checkpoint of something else; and as `load`.
        EngineError: A prior from which only engine `reference` draws, or one without calibration.
        RuntimeError: There is no compiled module.
        OSError: A file cannot be written.
    """
    if _native.module is None:
        raise RuntimeError(f"pack: {_native.MISSING_REASON}.")
    if engine not in ENGINES:
        raise ValueError(f"pack: expected engine to be one of {ENGINES}, got {engine!r}.")
    folder = checkpoint_folder(path, where="pack")
    model = load(folder)
    if isinstance(model, Pipeline):
        names = level_names(len(model.priors))
        priors = {f"prior_{name}": p for name, p in zip(names, model.priors, strict=True)}
    elif isinstance(model, Prior):
        priors = {"": model}
    else:
        raise ValueError(
            f"pack: expected a pipeline or a prior at {folder}, found a {type(model).__name__}."
        )
    # Nothing is written unless all can be.
    descriptions = {
        folder / name / packed_name(engine): _described(prior, engine)
        for name, prior in priors.items()
    }
    for file, description in descriptions.items():
        write_packed(file, description, _native.module, torch.get_num_threads())
    return list(descriptions)


def packed_engines(priors: Mapping[Path, nn.Module]) -> list[str]:
    """The engines for which the folder of each prior has a file that was packed from the prior."""
    return [
        engine
        for engine in ENGINES
        if priors and all(_has_file(folder, prior, engine) for folder, prior in priors.items())
    ]


def _has_file(folder: Path, prior: nn.Module, engine: str) -> bool:
    path = folder / packed_name(engine)
    if _native.module is None or not path.exists():
        return False
    try:
        description = _described(prior, engine)
    except ValueError:  # a prior from which this engine does not draw
        return False
    return is_packed_from(path, description, _native.module, torch.get_num_threads())


def _described(prior: nn.Module, engine: str) -> Description:
    plan = plan_of(prior, checked_interface("pack", prior))
    return described_plan(plan, weights_of(engine, prior, plan))
