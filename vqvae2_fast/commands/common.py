"""What the commands share: their options, opening data, writing results."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.checkpoints import load
from vqvae2_fast.checkpoints.checkpoint import checkpoint_folder, class_names
from vqvae2_fast.checkpoints.locate import CHECKPOINTS
from vqvae2_fast.checkpoints.pretrained import from_preset, pretrained_folder
from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageSource, ImageTensorDataset, Split
from vqvae2_fast.data.code_format import MANIFEST
from vqvae2_fast.data.sources import DataOptions, open_splits
from vqvae2_fast.files.durable import write_file
from vqvae2_fast.files.printable import short
from vqvae2_fast.machine.freed_memory import keep_freed_memory
from vqvae2_fast.models.classifier import Classifier
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.models.weights_hash import check_made_for
from vqvae2_fast.runs.origin import origin_of
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.sampling.pipeline import Pipeline

if TYPE_CHECKING:
    from vqvae2_fast.checkpoints.models import Model

__all__ = [
    "Command",
    "ModelOptions",
    "Result",
    "check_no_run",
    "check_one_store",
    "check_out",
    "check_out_file",
    "check_same_classes",
    "described",
    "load_classifier",
    "load_vqvae",
    "open_both",
    "open_preset",
    "out_is_taken",
    "write_result",
]

_TRAINED_ON: tuple[Split, ...] = ("train", "held_out")
_MOST_THREADS = 4096


@dataclass(kw_only=True)
class Command:
    """Options of every command."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU where there is one."""
    threads: int = 0
    """Threads of the CPU; 0 leaves PyTorch's choice, within a container's quota."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print the result to standard output as JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    @classmethod
    def defaults(cls, arguments: list[str]) -> Any:
        """An instance that holds the defaults, for a command whose defaults depend on options."""
        return None

    def run(self) -> Result:
        """Run the command."""
        raise NotImplementedError

    def check_one_process(self) -> None:
        """Raises NotImplementedError under torchrun, for a command whose work is not shared."""
        if (count := Ranks.of_this_run().count) > 1:
            raise NotImplementedError(
                f"expected one process, got WORLD_SIZE={count}: each process would do all of the "
                "work and write the same files. Start this command without torchrun."
            )

    def prepare(self, *, keep_memory: bool = True) -> torch.device:
        """Apply `threads` and return the device.

        Args:
            keep_memory: On the CPU, let the process keep the memory that it frees.
        """
        if not 0 <= self.threads <= _MOST_THREADS:
            raise ValueError(f"--threads: expected 0 to {_MOST_THREADS}, got {self.threads}.")
        if self.threads:
            torch.set_num_threads(self.threads)
        device = self._chosen_device()
        if keep_memory and device.type == "cpu":
            keep_freed_memory()
        return device

    def _chosen_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        wrong = ValueError(f"--device: expected cpu, cuda or auto, got {self.device!r}.")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise wrong from error
        if device.type not in ("cpu", "cuda"):
            raise wrong
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device: {self.device} was asked for, but PyTorch sees no GPU.")
        if device.type == "cuda" and (device.index or 0) >= (cards := torch.cuda.device_count()):
            raise ValueError(
                f"--device: expected a number below {cards}, as many GPUs as PyTorch sees, got "
                f"{self.device}."
            )
        return device

    def prepare_on_cpu(self) -> torch.device:
        """`prepare` for a command that only the CPU runs."""
        device = self.prepare()
        if self.device != "auto" and device.type != "cpu":
            raise ValueError(
                "--device: expected cpu or auto, since this command runs on the CPU only, got "
                f"{self.device}."
            )
        return torch.device("cpu")

    def progress(self) -> Progress:
        return Progress(quiet=self.quiet)


@dataclass
class ModelOptions:
    """Which models: a pretrained preset, a pipeline, or a VQ-VAE and its priors one by one."""

    preset: str | None = None
    """A pretrained pipeline that comes with the package, such as emoji32."""
    pipeline: Path | None = None
    """Folder of a pipeline, as `vqvae2-fast demo` leaves one."""
    vqvae: Path | None = None
    """In place of --pipeline: a run or checkpoint of a VQ-VAE."""
    priors: tuple[Path, ...] = ()
    """With --vqvae: runs or checkpoints of its priors, coarse to fine (top, then bottom)."""

    def open(self, device: torch.device) -> Pipeline:
        """The pipeline, on a device."""
        given = [value for value in (self.preset, self.pipeline, self.vqvae) if value is not None]
        if len(given) != 1:
            raise ValueError(
                "expected one of --preset, --pipeline, or --vqvae with its --priors, got "
                f"{len(given) or 'none'} of them."
            )
        if self.priors and self.vqvae is None:
            raise ValueError(
                "--priors: expected --vqvae with them; a pipeline has priors of its own. Name its "
                "VQ-VAE, which is in its folder vqvae."
            )
        if self.preset is not None:
            return open_preset(self.preset, device)
        if self.vqvae is None:
            assert self.pipeline is not None  # as one was given
            pipeline = _load("--pipeline", self.pipeline, device)
            if not isinstance(pipeline, Pipeline):
                raise ValueError(
                    f"--pipeline: expected a pipeline at {self.pipeline}, found a "
                    f"{named(pipeline)}; name it by --vqvae or --priors."
                )
            return pipeline
        vqvae = load_vqvae(self.vqvae, device)
        priors = []
        for path in self.priors:
            prior = _load("--priors", path, device)
            if not isinstance(prior, Prior):
                raise ValueError(f"--priors: expected a prior at {path}, found a {named(prior)}.")
            priors.append(prior)
        made_for = {
            str(p): origin_of(prior, p) for p, prior in zip(self.priors, priors, strict=True)
        }
        check_made_for(vqvae, made_for)
        levels = range(vqvae.config.num_levels)  # Pipeline refuses more priors, or fewer
        for level, path, prior in zip(levels, self.priors, priors, strict=False):
            _check_order(path, prior, level, vqvae)
        return Pipeline(vqvae, priors)


@dataclass
class Result:
    """What a command leaves.

    Args:
        values: For machines, ready for JSON.
        lines: For people. Under torchrun, only the first process has any.
        exit_code: Exit code of the command line: 0, or 1 if what was checked is not sound.
    """

    values: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    exit_code: int = 0


def _check_order(path: Path, prior: Prior, level: int, vqvae: VQVAE2) -> None:
    """Raises ValueError for the prior of another level of the VQ-VAE than the one it stands for."""
    sizes, names = vqvae.config.level_sizes, level_names(vqvae.config.num_levels)
    modelled = (*prior.config.condition_sizes, prior.config.size)
    for own, name in enumerate(names):
        if own != level and modelled == tuple(sizes[: own + 1]):
            raise ValueError(
                f"--priors: {path} is the prior of the {name} level, and stands where that of the "
                f"{names[level]} level is expected. Name them in the order {', '.join(names)}."
            )


def open_preset(name: str, device: torch.device) -> Pipeline:
    """The pretrained pipeline that --preset names. Raises as `from_preset` does."""
    pretrained_folder(name)
    return from_preset(name, device)


def _load(flag: str, path: Path, device: torch.device) -> Model | Pipeline:
    """What is saved at the path that an option names. Raises as `load` does."""
    return load(checkpoint_folder(path, flag), device)


def load_vqvae(path: Path, device: torch.device) -> VQVAE2:
    """The VQ-VAE at a path, or that of a pipeline. Raises ValueError if a prior is there."""
    found = _load("--vqvae", path, device)
    model = found.vqvae if isinstance(found, Pipeline) else found
    if not isinstance(model, VQVAE2):
        raise ValueError(f"--vqvae: expected a VQ-VAE at {path}, found a {named(model)}.")
    return model


def load_classifier(
    path: Path, device: torch.device, classes: tuple[str, ...], shape: tuple[int, int, int]
) -> Classifier:
    """The classifier at a path. Raises ValueError unless it is one for these classes and images.

    Args:
        classes: Names, in the order of the labels that it is to judge.
        shape: (C, H, W) of the images.
    """
    model = _load("--classifier", path, device)
    if not isinstance(model, Classifier):
        raise ValueError(f"--classifier: expected a classifier at {path}, found a {named(model)}.")
    own = class_names(path)
    if own != classes:
        raise ValueError(
            f"--classifier: {path} was trained on {len(own)} classes ({_some(own)}), the labels "
            f"are of {len(classes)} ({_some(classes)}). Train one on these: "
            "`vqvae2-fast train-classifier`."
        )
    expected = (model.config.image_channels, *model.config.image_size)
    if expected != shape:
        raise ValueError(
            f"--classifier: {path} takes images of {list(expected)} (C, H, W), these are "
            f"{list(shape)}; train one with --image-size {shape[1]} {shape[2]} --image-channels "
            f"{shape[0]}."
        )
    return model


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "none named"


def named(model: object) -> str:
    """What a loaded checkpoint is, in words."""
    kinds = {
        VQVAE2: "VQ-VAE (stage 1)",
        Prior: "prior (stage 2)",
        Pipeline: "pipeline",
        Classifier: "classifier",
    }
    known = (name for kind, name in kinds.items() if isinstance(model, kind))
    return next(known, type(model).__name__)


def check_no_run(out: Path) -> None:
    """Raises ValueError if --out holds a run, whose pictures and results would be replaced."""
    if (out / CHECKPOINTS).is_dir():
        raise ValueError(
            f"--out: {out} holds a training run, whose results would be replaced. Name another "
            "folder."
        )


def out_is_taken(out: Path) -> str:
    """What a run says that finds another one writing to its --out."""
    return f"--out: another run is writing to {out}. Wait for it, or name another folder."


def check_one_store(path: Path) -> None:
    """Raises ValueError if `path` holds the stores of an extraction, where one store is
    expected."""
    stores = [path / split for split in _TRAINED_ON if (path / split / MANIFEST).is_file()]
    if stores and not (path / MANIFEST).is_file():
        raise ValueError(
            f"{path} is the folder of the stores that `extract` left; name one of them, "
            f"{' or '.join(map(str, stores))}."
        )


# Endings that nobody gives a new folder.
_OF_FILES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".npy", ".npz", ".json", ".jsonl", ".html"}
_OF_FILES |= {".safetensors", ".pt", ".pth", ".ckpt", ".vq2", ".zip", ".csv", ".txt"}


def check_out(out: Path, source: DataOptions | None = None) -> None:
    """Raises ValueError if --out cannot be a folder, cannot be written to, or would add to the
    images of --data."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; expected a folder, or a name for a new one.")
    if not out.exists() and out.suffix.lower() in _OF_FILES:
        raise ValueError(
            f"--out: expected a folder, got {out}, which is a name for a file. Files in it get "
            f"their own names: give a folder, such as {out.with_suffix('')}."
        )
    if source is not None and Path(source.data).is_dir():
        data = Path(source.data).resolve()
        if out.resolve().is_relative_to(data):
            raise ValueError(
                f"--out: {out} lies in {source.data}, whose images it would add to. Name a folder "
                "outside of --data."
            )
    # What cannot be written is else said only where the first file is, after minutes.
    begun = next(folder for folder in (out, *out.absolute().parents) if os.path.exists(folder))
    if not (begun.is_dir() and os.access(begun, os.W_OK | os.X_OK)):
        why = "cannot be written to" if begun.is_dir() else "is a file"
        raise ValueError(
            f"--out: expected a folder to write to, got {out}; {begun} {why}. Name another folder."
        )


def check_out_file(out: Path, example: str) -> None:
    """Raises ValueError if --out cannot be a file: a folder, a device, or in no writable folder."""
    if out.is_dir():
        raise ValueError(
            f"--out: {out} is a folder; expected the name of a file, such as {out / example}."
        )
    if out.exists() and not out.is_file():
        raise ValueError(
            f"--out: {out} is a device, FIFO or socket; expected the name of a file, such as "
            f"{example}."
        )
    check_out(out.absolute().parent)


def open_both(
    source: DataOptions,
    channels: int,
    size: tuple[int, int],
    progress: Progress,
    *,
    dry: bool = False,
) -> tuple[ImageSource, ImageSource]:
    """The images to train on and the held-out ones.

    Args:
        dry: Write no cache, but read every image, to find those that cannot be read.
    """
    opened = open_splits(source, _TRAINED_ON, channels, size, progress, write=not dry)
    train_set, held_out = (opened[split] for split in _TRAINED_ON)
    if dry:
        with progress.task("read all images", len(train_set) + len(held_out)) as task:
            for done, index in enumerate((*range(len(train_set)), *range(-len(held_out), 0))):
                _ = train_set[index] if index >= 0 else held_out[index + len(held_out)]
                task.update(done + 1)
    return train_set, held_out


def described(images: ImageSource) -> str:
    """The size of a set's images, and how they were brought to it."""
    made = "" if isinstance(images, ImageTensorDataset) else ", scaled and cropped to their centre"
    return f"images {list(images.image_shape)}{made}"


def write_result(path: Path, values: dict[str, Any]) -> None:
    """Write a command's result as JSON, making its folder; a result that was there is replaced.

    Raises:
        OSError: The disk is full or fails; the old result is then as it was.
    """
    write_file(path, (json.dumps(values, indent=2) + "\n").encode())


def check_same_classes(pipeline: Pipeline, found: tuple[str, ...]) -> None:
    """Raises ValueError if the images have other classes than the priors: their bits would be those
    of wrong labels."""
    expected = pipeline.class_names
    if not pipeline.num_classes or not found or found == expected:
        return
    if expected or len(found) != pipeline.num_classes:
        names = f" ({short(', '.join(expected))})" if expected else ""
        raise ValueError(
            f"--data: the priors know {pipeline.num_classes} classes{names}, and the images have "
            f"{len(found)} ({short(', '.join(found))}). Give images of the same classes (with "
            "--subclasses if theirs were split), or a flat folder, whose images are measured "
            "without a class."
        )
