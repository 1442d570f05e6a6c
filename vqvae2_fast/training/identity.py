"""What a run is a run of: its data, by a hash, and the versions that computed it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

import vqvae2_fast

if TYPE_CHECKING:
    from vqvae2_fast.data import CodeStore, ImageSource

__all__ = ["hash_of_codes", "hash_of_images", "versions"]

_SAMPLE = 64  # images of a set that stand for all of them


def hash_of_images(images: ImageSource) -> str:
    """Of the labels of a set and of some images, spread evenly over it.

    It depends on the pixels alone: on no file's time, and on no cache.
    """
    digest = hashlib.sha256(repr(images.labels.tolist()).encode())
    for index in torch.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).long().tolist():
        digest.update(images[index][0].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
