"""The identity of a run: a hash of its codes, and the versions of the packages that computed it.

For images it is `vqvae2_fast.data.fingerprint`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

import vqvae2_fast

if TYPE_CHECKING:
    from vqvae2_fast.data import CodeStore

__all__ = ["hash_of_codes", "versions"]


def hash_of_codes(store: CodeStore) -> str:
    """A hash of a store's manifest, which has the checksums of its shards, and of a selection.

    Equal codes that were cut into other shards, as by another number of processes, have another.
    """
    manifest = store.manifest
    shards = [(shard.first, shard.records, shard.crc32) for shard in manifest.shards]
    what = (manifest.layout, manifest.class_names, manifest.checkpoint_hash, shards)
    digest = hashlib.sha256(repr(what).encode())
    if store.is_selection:
        digest.update(store.positions.numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of this package and of torch (without its build): others may round differently."""
    return {
        "vqvae2_fast": vqvae2_fast.__version__,
        "torch": torch.__version__.partition("+")[0],
    }
