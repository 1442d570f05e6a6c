"""The images that `vqvae2-fast sample --known` completes, and where: below a row, or in holes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from vqvae2_fast.data import CodeStore, ImageFolder, ImageTensorDataset, load_emoji, to_float
from vqvae2_fast.data.pixels import decode_image, decode_whole_image
from vqvae2_fast.data.sources import warn_of_folder
from vqvae2_fast.files.durable import explained
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import UntrustedFileError, open_untrusted
from vqvae2_fast.models.code_checks import check_prior_fits
from vqvae2_fast.models.weights_hash import check_codes_of
from vqvae2_fast.sampling.fill import encoded, masks_of_levels
from vqvae2_fast.sampling.pipeline import decoded

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["Hole", "Known", "lower_rows", "open_known", "painted"]


@dataclass(frozen=True, eq=False)
class Hole:
    """Where images are completed.

    Args:
        pixels: Where to draw, bool `[H, W]`.
        codes: The same in codes, bool `[h, w]` per level, coarse to fine.
        origin: What it comes from, ready for JSON; a resumed run must keep to it.
        candidates: As in `fill`; None where nothing known follows.
    """

    pixels: Tensor
    codes: list[Tensor]
    origin: dict[str, Any]
    candidates: int | None = None


def lower_rows(keep: float, config: VQVAE2Config) -> Hole:
    """All rows but the upper ones.

    Args:
        keep: Share of the rows of each map that is kept, counted from the top.

    Raises:
        ValueError: A share that is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: expected a share of the rows above 0 and at most 1, got {keep}.")
    pixels, *codes = (
        (torch.arange(height, device="cpu") >= int(keep * height))[:, None].expand(height, width)
        for height, width in (config.image_size, *config.level_sizes)
    )
    return Hole(pixels, codes, {"keep": keep})


def painted(path: Path, candidates: int, config: VQVAE2Config) -> Hole:
    """Where an image is white or transparent.

    The image is scaled to cover the model's size and cropped to its centre, as the known images
    are. A pixel of the result is drawn if one that it covers is to be drawn.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It cannot be decoded, or nothing in it is to be drawn; candidates below 1.
    """
    if candidates < 1:
        raise ValueError(f"candidates: expected 1 or more, got {candidates}.")
    source = f"mask: {printable(path)}"
    with _opened_mask(path) as file:
        mask = decode_whole_image(file, source, channels=1, convert_channels=True) >= 128
    height, width = config.image_size
    scale = min(mask.shape[1] / height, mask.shape[2] / width)
    top, left = (
        int((side - full * scale) / 2)
        for side, full in zip(mask.shape[1:], (height, width), strict=True)
    )
    inner = mask[:, top : mask.shape[1] - top, left : mask.shape[2] - left]
    pixels = F.adaptive_max_pool2d(inner.float(), (height, width))[0] > 0
    if not pixels.any():
        raise ValueError(
            f"{source}: expected white or transparent pixels where to draw, but there are none."
        )
    codes = [level[0] for level in masks_of_levels(config, pixels, 1)]
    digest = hashlib.sha256(mask.numpy().tobytes()).hexdigest()
    origin = {"mask": f"{path} ({digest[:16]})", "candidates": candidates}
    return Hole(pixels, codes, origin, candidates)


def _opened_mask(path: Path) -> IO[bytes]:
    """The file of a mask; errors name the argument."""
    try:
        with explained(f"mask: {printable(path)}"):
            return open_untrusted(path)
    except UntrustedFileError as error:
        raise ValueError(f"mask: {error}") from error


@dataclass(frozen=True, eq=False)
class Known:
    """Images to complete.

    Args:
        source: Where they come from, with a fingerprint.
    """

    pipeline: Pipeline
    dataset: ImageTensorDataset | ImageFolder | CodeStore
    source: str
    hole: Hole

    def __len__(self) -> int:
        return len(self.dataset)

    def labels_for(self, class_names: tuple[str, ...]) -> Tensor | None:
        """int64 `[N]`, if the images have exactly these classes."""
        same = bool(class_names) and tuple(self.dataset.class_names) == class_names
        return self.dataset.labels if same else None

    def batch(self, numbers: list[int]) -> list[Tensor]:
        """For `known` of `sample_images`: int64 `[B, h, w]` per level, -1 in the hole."""
        maps = [torch.stack(level) for level in zip(*map(self._codes, numbers), strict=True)]
        return [
            level.masked_fill(hole, -1) for level, hole in zip(maps, self.hole.codes, strict=True)
        ]

    def image(self, number: int) -> Tensor:
        """The whole image, float `[C, H, W]` in [-1, 1]."""
        if isinstance(self.dataset, CodeStore):
            return decoded(self.pipeline, [level[None] for level in self._codes(number)])[0]
        return to_float(self.dataset[number][0])

    # The codes of a small set are kept for the next round; those of a large set are not.
    @lru_cache(maxsize=256)  # noqa: B019  (one object a process)
    def _codes(self, number: int) -> tuple[Tensor, ...]:
        """The code maps `[h, w]` of an image."""
        if isinstance(self.dataset, CodeStore):
            return tuple(self.dataset[number][0])
        vqvae, _ = self.pipeline.networks()
        return tuple(level[0].cpu() for level in encoded(vqvae, self.image(number)[None]))


def open_known(
    known: str,
    hole: Hole,
    pipeline: Pipeline,
    *,
    skip_corrupt: bool = False,
    skip_small: bool = False,
) -> Known:
    """The images or codes at `known`: `emoji`, an image, a folder of images, or a code store.

    Args:
        skip_corrupt, skip_small: Which images of a folder to leave out; see `ImageFolder`.

    Raises:
        ValueError: There is none of these; images smaller than the model's; or codes of another
            model.
    """
    vqvae, priors = pipeline.networks()
    config, path = vqvae.config, Path(known)
    dataset: ImageTensorDataset | ImageFolder | CodeStore
    if known == "emoji":
        warn_of_folder(known)
        if config.image_channels != 3 or config.image_size[0] != config.image_size[1]:
            raise ValueError(
                "known: emoji are square images of 3 channels, but the model is for "
                f"{config.image_channels} of {config.image_size[0]}x{config.image_size[1]}."
            )
        dataset, source = load_emoji("held_out", config.image_size[0]), "emoji"
    elif (path / "manifest.json").is_file():
        dataset = CodeStore(path)
        # Not its classes: they need not be those of the priors where --label names one.
        check_prior_fits(
            "the finest prior",
            priors[-1].config,
            dataset.num_embeddings,
            dataset.level_sizes,
            f"{printable(path)} holds others. Extract with the VQ-VAE that the priors are for.",
        )
        check_codes_of(vqvae, known, dataset.checkpoint_hash)
        digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
        source = f"{path} ({digest[:16]})"
    elif path.is_dir():
        dataset = ImageFolder(
            path,
            config.image_size,
            image_channels=config.image_channels,
            skip_corrupt=skip_corrupt,
            skip_small=skip_small,
            convert_channels=True,
        )
        source = f"{path} ({dataset.fingerprint()[:16]})"
    elif path.exists():  # a FIFO or a device too, which is then refused by name
        dataset = _one_image(path, config)
        source = f"{path} ({hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"
    else:
        raise ValueError(
            "known: expected an image, a folder of images, a code store or `emoji`, but there is "
            f"nothing at {known!r}."
        )
    if not len(dataset):
        raise ValueError(f"known: {path} holds no records.")
    return Known(pipeline, dataset, source, hole)


def _one_image(path: Path, config: VQVAE2Config) -> ImageTensorDataset:
    shape = (config.image_channels, *config.image_size)
    with open_untrusted(path) as file:
        pixels = decode_image(file, f"known: {printable(path)}", shape, convert_channels=True)
    return ImageTensorDataset(pixels[None], names=(path.name,))
