"""Which VQ-VAE's codes a prior was trained on: kept beside its checkpoints, checked later.

Codes of another VQ-VAE have the same shape and mean nothing: a prior goes on, and draws, with the
one that it was trained for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vqvae2_fast.files.durable import replace_file
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.models.weights_hash import weights_hash

if TYPE_CHECKING:
    from pathlib import Path

    from vqvae2_fast.data import CodeStore
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["check_origin", "check_same_origin", "keep_origin"]

_FILE = "codes.json"


def keep_origin(run: Path, codes: CodeStore) -> None:
    """Writes into the folder of a run whose codes it is trained on."""
    run.mkdir(parents=True, exist_ok=True)
    values = {"codes": str(codes.folder), "checkpoint_hash": codes.checkpoint_hash}
    replace_file(run / _FILE, (json.dumps(values, indent=2) + "\n").encode())


def check_same_origin(run: Path, codes: CodeStore) -> None:
    """Raises ValueError if a run that is to go on was trained on codes of another VQ-VAE."""
    known, found = _origin(run), codes.checkpoint_hash
    if known and found and known != found:
        raise ValueError(
            f"--codes: {run} was trained on codes of VQ-VAE {known[:12]}, {codes.folder} has codes "
            f"of {found[:12]}; name the codes of before, or another --out."
        )


def check_origin(prior: Path, vqvae: VQVAE2) -> None:
    """Raises ValueError if a prior's run says that it models the codes of another VQ-VAE."""
    # `prior` is the run's folder, RUN/best or a checkpoint in RUN/checkpoints.
    known = _origin(prior) or _origin(prior.parent) or _origin(prior.parent.parent)
    found = weights_hash(vqvae) if known else ""
    if known != found:
        raise ValueError(
            f"--priors: {prior} was trained on codes of VQ-VAE {known[:12]}, that of --vqvae is "
            f"{found[:12]}; name the one that the codes were extracted with."
        )


def _origin(run: Path) -> str:
    """The hash that a run's folder keeps, or "" where it keeps none."""
    try:
        known = read_object(run / _FILE).get("checkpoint_hash")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return known if isinstance(known, str) else ""
