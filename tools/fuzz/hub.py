"""The target of models from the Hub: local folders, and the links of its cache, read and then used.

The other target of checkpoints ends when a model is there. This one goes on to draw from it, encode
and classify, since numbers that fit a configuration may still be anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from models import MAKE_MODELS
from safetensors.torch import load_file, save_file

from vqvae2_fast.checkpoints.hub import from_pretrained, model_card
from vqvae2_fast.checkpoints.sums import write_sums
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling.pipeline import Pipeline, sample_images

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

__all__ = ["MAKE_HUB", "read_hub", "seal_hub"]

_SEPARATOR = "+"  # of folders in the name of a blob


def _repository(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """A folder `c` as `push_to_hub` leaves it, with a card."""

    def made(folder: Path) -> None:
        make(folder)
        card = model_card(from_pretrained(folder / "c"), "someone/model")
        (folder / "c" / "README.md").write_text(card)

    return made


def _cached(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """The blobs of the Hub's cache, to which `read_hub` makes the links."""

    def made(folder: Path) -> None:
        make(folder)
        (folder / "blobs").mkdir()
        for path in sorted((folder / "c").rglob("*")):
            if path.is_file():
                name = _SEPARATOR.join(path.relative_to(folder / "c").parts)
                path.rename(folder / "blobs" / name)

    return made


def _in_type(dtype: torch.dtype) -> Callable[[Path], None]:
    """Weights in a type that no model has, with the checksums that belong to them."""

    def made(folder: Path) -> None:
        MAKE_MODELS[0](folder)
        for path in (folder / "c").rglob("*.safetensors"):
            save_file({name: x.to(dtype) for name, x in load_file(path).items()}, path)
            write_sums(path.parent)

    return made


_TYPES = (torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64)
MAKE_HUB = (
    *map(_repository, MAKE_MODELS),
    *map(_cached, MAKE_MODELS[:2]),
    *map(_in_type, (*_TYPES, torch.float8_e4m3fn)),
)


def read_hub(folder: Path, out: Path) -> None:
    source = folder / "c"
    if (folder / "blobs").is_dir():
        source = folder / "snapshots" / "revision"
        for blob in (folder / "blobs").iterdir():
            link = source.joinpath(*blob.name.split(_SEPARATOR))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    model = from_pretrained(source)
    try:
        _use(model)
    except (ValueError, RuntimeError) as error:
        if "expected" not in str(error):
            raise
        raise ValueError(f"{source}: {error}") from error


@torch.inference_mode()
def _use(model: nn.Module | Pipeline) -> None:
    if isinstance(model, Pipeline):
        labels = [0] if model.class_names else None
        sample_images(model, 1, labels=labels)
    elif isinstance(model, VQVAE2):
        config = model.config
        model.decode(model.encode(torch.zeros(1, config.image_channels, *config.image_size)))
    else:
        model(torch.zeros(1, 1, 16, 16))


def seal_hub(folder: Path) -> None:
    """Writes the checksums of what the files of a folder are now."""
    for sums in folder.rglob("files.json"):
        write_sums(sums.parent)
