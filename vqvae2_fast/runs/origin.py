"""Which VQ-VAE's codes a run trains its prior on, kept in the run's folder.

A prior's checkpoint keeps it too (`Prior.vqvae_hash`), except for those of older versions.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vqvae2_fast.files.durable import replace_file
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.files.printable import printable
from vqvae2_fast.runs.folder import check_run_folder

if TYPE_CHECKING:
    from pathlib import Path

    from vqvae2_fast.data import CodeStore
    from vqvae2_fast.models.prior import Prior

__all__ = ["check_same_origin", "keep_origin", "origin_of"]

_FILE = "codes.json"


def keep_origin(run: Path, codes: CodeStore) -> None:
    """Write into a run's folder which codes it is trained on."""
    check_run_folder(run)
    run.mkdir(parents=True, exist_ok=True)
    values = {"codes": str(codes.folder), "checkpoint_hash": codes.checkpoint_hash}
    replace_file(run / _FILE, (json.dumps(values, indent=2) + "\n").encode())


def check_same_origin(run: Path, codes: CodeStore) -> None:
    """Raise ValueError if a run to be continued was trained on codes of another VQ-VAE."""
    known, found = _kept(run), codes.checkpoint_hash
    if known and found and known != found:
        raise ValueError(
            f"codes: expected codes of VQ-VAE {printable(known[:12])}, on which {run} was trained, "
            f"got those of VQ-VAE {printable(found[:12])} in {codes.folder}. Use the same codes, "
            "or begin another run."
        )


def origin_of(prior: Prior, path: Path) -> str:
    """The `weights_hash` of the VQ-VAE whose codes a prior was trained on; "" if not known.

    Args:
        path: Where it was loaded from: a run, RUN/best or a checkpoint in RUN/checkpoints.
    """
    return prior.vqvae_hash or _kept(path) or _kept(path.parent) or _kept(path.parent.parent)


def _kept(run: Path) -> str:
    """The hash that a run's folder keeps, or "" if it keeps none."""
    try:
        known = read_object(run / _FILE).get("checkpoint_hash")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return known if isinstance(known, str) else ""
