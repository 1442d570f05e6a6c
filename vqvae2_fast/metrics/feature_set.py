"""Features of a set of images, in mapped files.

They are written batch by batch as float32 and read in parts, so a set of 50,000 images with 1,280
features takes 256 MB on the disk and little memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vqvae2_fast.metrics.frechet import Moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from vqvae2_fast.metrics.features import FeatureExtractor

__all__ = ["FeatureSet", "extract_features"]

_PARTS = ("features", "spatial", "log_probabilities")
_ROWS = 1024  # read at a time; some copies are held in float64


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """What a network sees in a set of images.

    Args:
        features: `[N, D]`.
        spatial: Part of a map, flattened, `[N, S]`.
        log_probabilities: `[N, classes]`.
        images_per_second: How fast they were extracted.
    """

    features: np.ndarray
    spatial: np.ndarray
    log_probabilities: np.ndarray
    labels: Tensor
    images_per_second: float = 0.0

    def __len__(self) -> int:
        return len(self.features)

    def select(self, rows: Tensor) -> FeatureSet:
        """Some of the images, copied into memory."""
        return self._at(rows.numpy())

    def first(self, count: int) -> FeatureSet:
        """The first images, in the mapped files."""
        return self._at(slice(count))

    def _at(self, rows: np.ndarray | slice) -> FeatureSet:
        return FeatureSet(
            self.features[rows], self.spatial[rows], self.log_probabilities[rows], self.labels[rows]
        )

    def tensor(self, part: str = "features") -> Tensor:
        """One part as a tensor on the mapped file; do not write to it."""
        return torch.from_numpy(np.asarray(getattr(self, part)))

    def moments(self, part: str = "features") -> Moments:
        return Moments.of(self.tensor(part).split(_ROWS))


def extract_features(
    extractor: FeatureExtractor,
    batches: Iterable[tuple[Tensor, Tensor]],
    count: int,
    folder: Path,
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> FeatureSet:
    """Features of all images, mapped from files that are written to `folder`.

    Args:
        batches: Images float `[B, C, H, W]` in [-1, 1] and labels int64 `[B]`.
        count: The number of images.
        progress: Called with the number of images that are done.

    Raises:
        ValueError: There are more or fewer than `count` images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, np.memmap] = {}
    labels = torch.empty(count, dtype=torch.int64)
    done, start = 0, time.monotonic()
    for images, own in batches:
        seen = extractor(images)
        for name in _PARTS:
            rows = getattr(seen, name).float().cpu().numpy()
            if name not in files:
                files[name] = np.lib.format.open_memmap(
                    folder / f"{name}.npy",
                    mode="w+",
                    dtype=np.float32,
                    shape=(count, rows.shape[1]),
                )
            if done + len(rows) > count:
                raise ValueError(f"extract_features: expected {count} images, got more.")
            files[name][done : done + len(rows)] = rows
        labels[done : done + len(own)] = own
        done += len(images)
        progress(done)
    if done != count:
        raise ValueError(f"extract_features: expected {count} images, got {done}.")
    seconds = time.monotonic() - start
    return FeatureSet(
        files["features"],
        files["spatial"],
        files["log_probabilities"],
        labels,
        done / max(seconds, 1e-9),
    )
