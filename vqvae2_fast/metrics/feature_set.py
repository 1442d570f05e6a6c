"""Features of a set of images, in mapped files.

They are written batch by batch as float32 and read in parts, so a set of 50,000 images with 1,280
features takes 256 MB on the disk and little memory. Only whole files are mapped: to write through a
map when the disk is full ends the process by SIGBUS.
"""

from __future__ import annotations

import io
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vqvae2_fast.files.durable import explained, renamed_into_place, write_all
from vqvae2_fast.metrics.frechet import Moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from io import FileIO
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
        OSError: The disk is full or fails; the error names the file, which is as it was.
    """
    paths = {name: folder / f"{name}.npy" for name in _PARTS}
    labels = torch.empty(count, dtype=torch.int64, device="cpu")
    done, start = 0, time.monotonic()
    with explained(f"cannot write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files: dict[str, FileIO] = {}
        for images, own in batches:
            seen = extractor(images)
            for name, path in paths.items():
                rows = getattr(seen, name).float().cpu().numpy()
                if done + len(rows) > count:
                    raise ValueError(f"expected {count} images, got more.")
                with explained(f"cannot write {path}", then="start again"):
                    if name not in files:
                        part = stack.enter_context(renamed_into_place(path))
                        files[name] = stack.enter_context(part.open("wb", buffering=0))
                        write_all(files[name], _header(count, rows.shape[1]))
                    write_all(files[name], rows.tobytes())
            labels[done : done + len(own)] = own
            done += len(images)
            progress(done)
        if done != count:
            raise ValueError(f"expected {count} images, got {done}.")
    seconds = time.monotonic() - start
    # Writable, as torch warns of tensors on arrays that are not.
    features, spatial, log_probabilities = (
        np.load(path, mmap_mode="r+") for path in paths.values()
    )
    return FeatureSet(features, spatial, log_probabilities, labels, done / max(seconds, 1e-9))


def _header(count: int, width: int) -> bytes:
    """What a .npy file of float32 `[count, width]` begins with."""
    header = io.BytesIO()
    layout = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(header, layout)
    return header.getvalue()
