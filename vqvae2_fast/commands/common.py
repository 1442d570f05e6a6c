"""What the commands share: their options, opening data, writing results."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.data import ImageFolder, ImageTensorDataset, Split, load_emoji
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.training import Progress, load
from vqvae2_fast.training.checkpoint import class_names

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Command", "DataOptions", "ModelOptions", "Result", "load_vqvae", "open_images", "parse_labels",
    "write_result",
]  # fmt: skip


@dataclass(kw_only=True)
class Command:
    """Options of every command."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU where there is one."""
    threads: int = 0
    """Threads of the CPU; 0 leaves PyTorch's choice."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print the result to standard output as JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def prepare(self) -> torch.device:
        """Apply `threads` and give the device."""
        if self.threads < 0:
            raise ValueError(f"--threads: expected 0 or more, got {self.threads}.")
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"--device: expected cpu, cuda or auto, got {self.device!r}."
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device: {self.device} was asked for, but PyTorch sees no GPU.")
        return device

    def progress(self) -> Progress:
        return Progress(quiet=self.quiet)


@dataclass
class DataOptions:
    """Where images come from."""

    data: str = "emoji"
    """`emoji` (embedded), or a folder of images: flat, or one subfolder a class."""
    held_out_fraction: float = 0.1
    """Share of a folder's images that is never trained on, chosen by their names."""
    skip_corrupt: bool = False
    """Leave out files of a folder that cannot be decoded, with a warning."""
    convert_channels: bool = False
    """Turn a folder's grey images to RGB or RGB ones to grey where the model wants the other."""


@dataclass
class ModelOptions:
    """Which models: a pipeline, or a VQ-VAE and its priors one by one."""

    pipeline: Path | None = None
    """Folder of a pipeline, as `vqvae2-fast demo` leaves one."""
    vqvae: Path | None = None
    """In place of --pipeline: a run or checkpoint of a VQ-VAE."""
    priors: tuple[Path, ...] = ()
    """With --vqvae: runs or checkpoints of its priors, coarse to fine (top, then bottom)."""

    def open(self, device: torch.device) -> tuple[Pipeline, tuple[str, ...]]:
        """The pipeline and the names of its classes."""
        if (self.pipeline is None) == (self.vqvae is None):
            raise ValueError("expected either --pipeline, or --vqvae with its --priors.")
        if self.pipeline is not None:
            pipeline = load(self.pipeline, device)
            if not isinstance(pipeline, Pipeline):
                raise ValueError(
                    f"--pipeline: expected a pipeline at {self.pipeline}, found a "
                    f"{type(pipeline).__name__}; name it by --vqvae or --priors."
                )
            return pipeline, class_names(self.pipeline)
        vqvae = load_vqvae(self.vqvae, device)
        priors = [load(path, device) for path in self.priors]
        for path, prior in zip(self.priors, priors, strict=True):
            if not isinstance(prior, PixelSNAIL):
                raise ValueError(
                    f"--priors: expected a prior at {path}, found a {type(prior).__name__}."
                )
        if len(priors) != vqvae.config.num_levels:
            raise ValueError(
                f"--priors: expected {vqvae.config.num_levels}, one a level of the VQ-VAE, coarse "
                f"to fine, got {len(priors)}."
            )
        return Pipeline(vqvae, priors), class_names(self.priors[0])


@dataclass
class Result:
    """What a command leaves.

    Args:
        values: For machines, JSON-ready.
        lines: For people.
    """

    values: dict[str, Any]
    lines: list[str] = field(default_factory=list)


def load_vqvae(path: Path, device: torch.device) -> VQVAE2:
    """The VQ-VAE at a path, or that of a pipeline. Raises ValueError if a prior is there."""
    model = load(path, device)
    if isinstance(model, Pipeline):
        model = model.vqvae
    if not isinstance(model, VQVAE2):
        raise ValueError(f"--vqvae: expected a VQ-VAE at {path}, found a {type(model).__name__}.")
    return model


def open_images(
    options: DataOptions, split: Split, channels: int, size: tuple[int, int]
) -> ImageTensorDataset | ImageFolder:
    """The images of a split, in the channels and size (height, width) that a model takes."""
    if options.data == "emoji":
        if channels != 3 or size[0] != size[1]:
            raise ValueError(
                "--data emoji: these are square images of 3 channels, the model takes "
                f"{channels} channels of {size[0]}x{size[1]}."
            )
        return load_emoji(split, size[0])
    if not Path(options.data).exists():
        raise ValueError(f"--data: expected `emoji` or a folder of images, got {options.data!r}.")
    return ImageFolder(
        options.data, size, image_channels=channels, split=split,
        held_out_fraction=options.held_out_fraction, skip_corrupt=options.skip_corrupt,
        convert_channels=options.convert_channels,
    )  # fmt: skip


def parse_labels(asked: Sequence[str], class_names: Sequence[str], num_classes: int) -> list[int]:
    """Numbers of classes from numbers or from beginnings of their names, whatever the case."""
    labels = []
    for text in asked:
        if text.isdigit():
            found = [int(text)] if int(text) < num_classes else []
        else:
            exact = [i for i, name in enumerate(class_names) if name.lower() == text.lower()]
            found = exact or [
                i for i, name in enumerate(class_names) if name.lower().startswith(text.lower())
            ]
        if len(found) != 1:
            choice = ", ".join(class_names) or "none named"
            raise ValueError(
                f"--label: expected a number below {num_classes} or the beginning of one class "
                f"name ({choice}), got {text!r}."
            )
        labels += found
    return labels


def write_result(path: Path, values: dict[str, Any]) -> None:
    """Write a command's result as JSON, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
