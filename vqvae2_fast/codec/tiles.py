"""Images larger than a model's, as tiles. The priors code each tile by itself, but the VQ-VAE sees
it with a margin of its neighbours, in pixels and in codes.

A VQ-VAE is convolutional, so it also takes windows that are larger than its images. Without the
margins the borders of the tiles can be seen: docs/codec.md has figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.modules.contexts import evaluating
from vqvae2_fast.sampling.pipeline import decoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.models.vqvae2 import VQVAE2
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["Tiling"]

# Cells of the coarsest map that a window reaches into each neighbour.
_MARGIN = 2
_BATCH = 64  # tiles that are encoded, or decoded, at a time


@dataclass(frozen=True)
class Tiling:
    """How images of one size are cut.

    Args:
        height, width: Size of the images.
        margins: Whether the tiles were encoded with their neighbours.
    """

    vqvae: VQVAE2
    height: int
    width: int
    margins: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles; the last ones may reach beyond the image."""
        tile = self.vqvae.config.image_size
        return -(-self.height // tile[0]), -(-self.width // tile[1])

    def encode(self, images: Tensor) -> list[Tensor]:
        """Code maps int64 `[B·tiles, h, w]`, coarse to fine, of images `[B, C, H, W]`, an image's
        tiles row by row. Beyond an image its border is repeated."""
        config = self.vqvae.config
        parts = []
        with torch.no_grad(), evaluating(self.vqvae):
            for windows in self.windows(images, config.image_size):
                maps = self.vqvae.encode(windows)
                sizes = zip(maps, config.level_sizes, strict=True)
                parts.append([self.inner(level, size) for level, size in sizes])
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def decode(self, pipeline: Pipeline, codes: Sequence[Tensor]) -> Tensor:
        """Images `[B, C, H, W]` of all maps `[B·tiles, h, w]` that `encode` gave."""
        config = self.vqvae.config
        levels = [
            self.windows(self.joined(maps), size)
            for maps, size in zip(codes, config.level_sizes, strict=True)
        ]
        tiles = [
            self.inner(decoded(pipeline, list(windows)), config.image_size)
            for windows in zip(*levels, strict=True)
        ]
        return self.joined(torch.cat(tiles))[..., : self.height, : self.width]

    def _margin(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a margin, of planes where a tile has this size."""
        coarsest = self.vqvae.config.level_sizes[0]
        cells = _MARGIN if self.margins else 0
        return cells * size[0] // coarsest[0], cells * size[1] // coarsest[1]

    def windows(self, planes: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """Batches of windows `[N, ..., h, w]`, with margins, of planes `[B, ..., H, W]`."""
        (rows, columns), margin = self.grid, self._margin(size)
        for axis, count in ((-2, rows), (-1, columns)):
            # Before the first and after the last row or column, that one is repeated.
            at = torch.arange(-margin[axis], count * size[axis] + margin[axis], device="cpu")
            at = at.clamp(0, planes.shape[axis] - 1).to(planes.device)
            planes = planes.index_select(axis, at)
        # [B, ..., rows, columns, h, w] -> [B, rows, columns, ..., h, w], a view
        windows = planes.unfold(-2, size[0] + 2 * margin[0], size[0])
        windows = windows.unfold(-2, size[1] + 2 * margin[1], size[1])
        windows = windows.movedim((-4, -3), (1, 2))
        shape = windows.shape[:3]
        for numbers in torch.arange(shape.numel(), device="cpu").split(_BATCH):
            yield windows[torch.unravel_index(numbers, shape)]

    def inner(self, windows: Tensor, size: tuple[int, int]) -> Tensor:
        """Windows without their margins."""
        top, left = self._margin(size)
        return windows[..., top : top + size[0], left : left + size[1]]

    def joined(self, tiles: Tensor) -> Tensor:
        """`[B·tiles, ..., h, w]` -> `[B, ..., rows·h, columns·w]`."""
        grid = tiles.unflatten(0, (-1, *self.grid))  # [B, rows, columns, ..., h, w]
        grid = grid.movedim((1, 2), (-4, -2))  # [B, ..., rows, h, columns, w]
        return grid.flatten(-2, -1).flatten(-3, -2)
