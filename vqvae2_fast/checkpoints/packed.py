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
from vqvae2_fast.sampling.engines.cpu_file import packed_name, write_packed
from vqvae2_fast.sampling.engines.cpu_pack import described_plan
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.sampling.prior import checked_interface, plan_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["pack", "packed_engines"]


def pack(path: str | os.PathLike[str], engine: str = "cpu") -> list[Path]:
    """Write the packed weights of a checkpoint's priors to files beside their weights.

    A prior that `load` makes from the checkpoint then maps its file in the first draw of that
    engine. All processes share the pages, and none has to pack. A prior whose weights have changed
    packs as before. `save` at the same path removes the files.

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
    files = []
    for name, prior in priors.items():
        plan = plan_of(prior, checked_interface("pack", prior))
        description = described_plan(plan, weights_of(engine, prior, plan))
        files.append(folder / name / packed_name(engine))
        write_packed(files[-1], description, _native.module, torch.get_num_threads())
    return files


def packed_engines(folders: Sequence[Path]) -> list[str]:
    """The engines for which each of these folders of priors has a file of packed weights."""
    return [
        engine
        for engine in ENGINES
        if folders and all((folder / packed_name(engine)).exists() for folder in folders)
    ]
