"""The images that `vqvae2-fast sample --known` completes from the upper part of their codes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.data import CodeStore, ImageFolder, ImageTensorDataset, load_emoji, to_float
from vqvae2_fast.data.code_store import check_matches
from vqvae2_fast.data.pixels import decode_image
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import open_untrusted
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.sampling.pipeline import decoded

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["Known", "open_known"]


@dataclass(frozen=True)
class Known:
    """Images to complete.

    Args:
        source: Where they come from, with a fingerprint.
        keep: Share of the rows of each map that is kept, counted from the top.
    """

    pipeline: Pipeline
    dataset: ImageTensorDataset | ImageFolder | CodeStore
    source: str
    keep: float

    def __len__(self) -> int:
        return len(self.dataset)

    def labels_for(self, class_names: tuple[str, ...]) -> Tensor | None:
        """int64 `[N]`, if the images have exactly these classes."""
        same = bool(class_names) and tuple(self.dataset.class_names) == class_names
        return self.dataset.labels if same else None

    def batch(self, numbers: list[int]) -> list[Tensor]:
        """For `known` of `sample_images`: int64 `[B, h, w]` per level, -1 below the rows kept."""
        maps = [torch.stack(level) for level in zip(*map(self._codes, numbers), strict=True)]
        for level in maps:
            level[:, int(self.keep * level.shape[1]) :] = -1
        return maps

    def image(self, number: int) -> Tensor:
        """The whole image, float `[C, H, W]` in [-1, 1]."""
        if isinstance(self.dataset, CodeStore):
            return decoded(self.pipeline, [level[None] for level in self._codes(number)])[0]
        return to_float(self.dataset[number][0])

    # The codes of a small set are kept for the next round; those of a large set are not.
    @lru_cache(maxsize=256)  # noqa: B019  (one object a process)
    def _codes(self, number: int) -> tuple[Tensor, ...]:
        """The code maps `[h, w]` of an image, encoded by itself: batches round differently."""
        if isinstance(self.dataset, CodeStore):
            return tuple(self.dataset[number][0])
        vqvae, _ = self.pipeline.networks()
        device = device_of(vqvae)
        return tuple(level[0].cpu() for level in vqvae.encode(self.image(number)[None].to(device)))


def open_known(known: str, keep: float, pipeline: Pipeline) -> Known:
    """The images or codes at `known`: `emoji`, an image, a folder of images, or a code store.

    Raises:
        ValueError: There is none of these; images smaller than the model's; codes of another model;
            or a share that is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"--keep: expected a share of the rows above 0 and at most 1, got {keep}.")
    vqvae, priors = pipeline.networks()
    config, path = vqvae.config, Path(known)
    dataset: ImageTensorDataset | ImageFolder | CodeStore
    if known == "emoji":
        if config.image_channels != 3 or config.image_size[0] != config.image_size[1]:
            raise ValueError(
                f"--known emoji: these are square images of 3 channels, but the model is for "
                f"{config.image_channels} of {config.image_size[0]}x{config.image_size[1]}."
            )
        dataset, source = load_emoji("held_out", config.image_size[0]), "emoji"
    elif (path / "manifest.json").is_file():
        dataset = CodeStore(path)
        check_matches(dataset, priors[-1].config)
        digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
        source = f"{path} ({digest[:16]})"
    elif path.is_dir():
        dataset = ImageFolder(
            path, config.image_size, image_channels=config.image_channels, convert_channels=True
        )
        source = f"{path} ({dataset.fingerprint()[:16]})"
    elif path.is_file():
        dataset = _one_image(path, config)
        source = f"{path} ({hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"
    else:
        raise ValueError(
            "--known: expected an image, a folder of images, a code store or `emoji`, but there is "
            f"nothing at {known!r}."
        )
    if not len(dataset):
        raise ValueError(f"--known: {path} holds no records.")
    return Known(pipeline, dataset, source, keep)


def _one_image(path: Path, config: VQVAE2Config) -> ImageTensorDataset:
    shape = (config.image_channels, *config.image_size)
    with open_untrusted(path) as file:
        pixels = decode_image(file, f"--known: {printable(path)}", shape, convert_channels=True)
    return ImageTensorDataset(pixels[None], names=(path.name,))
