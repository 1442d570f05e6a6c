"""What a run is a run of: its codes, by a hash, and the versions that computed it.

That of images is `vqvae2_fast.data.fingerprint`.
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
    """Of what a store's manifest says, the checksums of its shards among it."""
    manifest = store.manifest
    shards = [(shard.first, shard.records, shard.crc32) for shard in manifest.shards]
    what = (manifest.layout, manifest.class_names, manifest.checkpoint_hash, shards)
    return hashlib.sha256(repr(what).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of this package and of torch, its build left out: another one may round otherwise."""
    return {
        "vqvae2_fast": vqvae2_fast.__version__,
        "torch": torch.__version__.partition("+")[0],
    }
