"""Checkpoints: folders of safetensors and JSON, renamed into place when complete.

A checkpoint holds config.json (`kind`, `version`, `config`), model.safetensors and, while training,
average.safetensors (the Polyak average), optimizer.safetensors and state.json. A pipeline is a
folder of such folders. Nothing is ever unpickled. `load` gives a model to use, `resume` gives all.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config, level_names, preset
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import Tensor, nn

__all__ = [
    "VERSION", "TrainingState", "checkpoint_folder", "class_names", "from_preset", "latest", "load",
    "read_config", "remove_old", "resume", "save", "save_training", "step_folder",
]  # fmt: skip

# Raised when a reader of this file could no longer read what a newer one writes.
VERSION = 1

_MODELS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "vqvae2": (VQVAE2, VQVAE2Config),
    "pixelsnail": (PixelSNAIL, PixelSNAILConfig),
}
_KINDS = (*_MODELS, "pipeline")
_STEP_FOLDER = "step-"


@dataclass
class TrainingState:
    """All that a run needs to go on as if it had never stopped."""

    model: nn.Module
    average: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save(
    obj: nn.Module | Pipeline, path: str | os.PathLike[str], *, class_names: Sequence[str] = ()
) -> None:
    """Write a model or a pipeline as a folder at `path`, replacing a checkpoint already there.

    Args:
        class_names: Names of the labels, kept in config.json (`class_names` reads them back).

    Raises:
        TypeError: If `obj` is none of VQVAE2, PixelSNAIL, Pipeline.
        ValueError: If `path` exists and is no checkpoint: only checkpoints are replaced.
    """
    with _replacing(Path(path)) as folder:
        if isinstance(obj, Pipeline):
            _write_json(
                folder / "config.json",
                {"kind": "pipeline", "version": VERSION, "class_names": list(class_names),
                 "config": {"levels": list(level_names(len(obj.priors)))}},
            )  # fmt: skip
            _write_model(obj.vqvae, folder / "vqvae")
            for name, prior in zip(level_names(len(obj.priors)), obj.priors, strict=True):
                _write_model(prior, folder / f"prior_{name}")
        else:
            _write_model(obj, folder, class_names)


def save_training(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    average: Mapping[str, Tensor] | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write a run's checkpoint: the model as it is, its average, the optimiser and the state."""
    with _replacing(Path(path)) as folder:
        _write_model(model, folder, class_names)
        if average is not None:
            _write_tensors(average, folder / "average.safetensors")
        _write_tensors(optimizer, folder / "optimizer.safetensors")
        _write_json(folder / "state.json", dict(state))


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """The VQVAE2, PixelSNAIL or Pipeline saved at `path`, in evaluation mode.

    A model from a run comes with its averaged weights where the run kept an average. `path` may
    also be the folder of a run: its latest checkpoint is taken.

    Raises:
        ValueError: If the checkpoint is damaged, of an unknown kind or of a newer version.
        FileNotFoundError: If there is none.
    """
    folder = checkpoint_folder(path)
    header = read_config(folder)
    if header["kind"] == "pipeline":
        levels = header["config"]["levels"]
        priors = [load(folder / f"prior_{_level(name, folder)}", device) for name in levels]
        return Pipeline(load(folder / "vqvae", device), priors)
    model = _build(header, folder)
    weights = _read_tensors(folder / "model.safetensors")
    if (folder / "average.safetensors").exists():
        weights |= _read_tensors(folder / "average.safetensors")
    _fill(model, weights, folder)
    return model.to(device).eval()


def resume(path: str | os.PathLike[str]) -> TrainingState:
    """The model with its raw weights, and all else a run saved. Raises as `load` does."""
    folder = checkpoint_folder(path)
    if not (folder / "state.json").exists():
        raise ValueError(
            f"resume: {folder} has no state.json: it holds a model alone, and a run cannot go on "
            "from it. Name the folder of a run, or a checkpoint in its checkpoints folder."
        )
    model = _build(read_config(folder), folder)
    _fill(model, _read_tensors(folder / "model.safetensors"), folder)
    average = folder / "average.safetensors"
    return TrainingState(
        model=model,
        average=_read_tensors(average) if average.exists() else None,
        optimizer=_read_tensors(folder / "optimizer.safetensors"),
        state=_read_json(folder / "state.json"),
    )


def from_preset(name: str, device: str | torch.device = "cpu") -> Pipeline:
    """The untrained pipeline of a preset; the list of names is `preset_names()`."""
    config = preset(name)
    priors = [PixelSNAIL(prior).to(device).eval() for prior in config.priors]
    return Pipeline(VQVAE2(config.vqvae).to(device).eval(), priors)


def latest(run: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint of a run's folder, None without one."""
    return max(_checkpoints(Path(run)), default=None)


def remove_old(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a run."""
    for folder in sorted(_checkpoints(run))[:-keep]:
        shutil.rmtree(folder)


def step_folder(run: Path, step: int) -> Path:
    """Where a run's checkpoint of one step stands; names sort as their steps do."""
    return run / "checkpoints" / f"{_STEP_FOLDER}{step:09d}"


def checkpoint_folder(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that `path` means: itself, or the latest of the run that it is.

    Raises:
        FileNotFoundError: If `path` is neither.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    newest = latest(folder)
    if newest is not None:
        return newest
    aside = _aside(folder)
    if aside.exists():
        raise FileNotFoundError(
            f"load: {folder} is missing, but {aside} holds the checkpoint that an interrupted save "
            f"was replacing. Rename it to {folder.name}."
        )
    what = "is no checkpoint: it has no config.json" if folder.exists() else "does not exist"
    raise FileNotFoundError(f"load: {folder} {what}.")


def class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the labels that a checkpoint was trained with; empty without classes."""
    return tuple(read_config(checkpoint_folder(path)).get("class_names", ()))


def read_config(folder: Path) -> dict[str, Any]:
    """The checked contents of config.json: `kind`, `version`, `config`."""
    header = _read_json(folder / "config.json")
    kind, version = header.get("kind"), header.get("version")
    if kind not in _KINDS:
        raise ValueError(f"load: {folder}: expected kind to be one of {_KINDS}, got {kind!r}.")
    if not isinstance(version, int) or version < 1:
        raise ValueError(
            f"load: {folder}: expected version to be an integer >= 1, got {version!r}."
        )
    if version > VERSION:
        raise ValueError(
            f"load: {folder} has version {version}; this package reads up to {VERSION}. "
            "Install a newer vqvae2_fast."
        )
    if not isinstance(header.get("config"), dict):
        raise ValueError(f"load: {folder}: expected config to be an object in config.json.")
    if kind == "pipeline" and not _is_strings(header["config"].get("levels")):
        raise ValueError(f"load: {folder}: expected levels to be a list of names in config.json.")
    if not _is_strings(header.get("class_names", [])):
        raise ValueError(f"load: {folder}: expected class_names to be a list of names.")
    return header


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _level(name: str, folder: Path) -> str:
    # A name becomes part of a path: only those that level_names can give are let through.
    if name not in {known for count in range(1, 5) for known in level_names(count)}:
        raise ValueError(f"load: {folder}: expected levels to be names of levels, got {name!r}.")
    return name


def _build(header: dict[str, Any], folder: Path) -> nn.Module:
    if header["kind"] not in _MODELS:
        raise ValueError(
            f"load: {folder} holds a {header['kind']}; expected one of {tuple(_MODELS)}."
        )
    model_class, config_class = _MODELS[header["kind"]]
    return model_class(_config(config_class, header["config"], folder))


def _config(config_class: type[Any], values: dict[str, Any], folder: Path) -> Any:
    known = {field.name: field.default for field in fields(config_class)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"load: {folder}: {config_class.__name__} has no field {name!r}; it has "
                f"{', '.join(known)}."
            )
        expected = list if isinstance(known[name], tuple) else type(known[name])
        fits = type(value) is expected or (expected is float and type(value) is int)
        if not fits:
            raise ValueError(
                f"load: {folder}: expected {name} of {config_class.__name__} to be "
                f"{expected.__name__}, got {value!r}."
            )
    try:
        return config_class(**{name: _tuples(value) for name, value in values.items()})
    except TypeError as error:
        raise ValueError(
            f"load: {folder}: config.json does not describe a model: {error}"
        ) from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _fill(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - weights), sorted(weights.keys() - expected)
    if missing or unknown:
        raise ValueError(
            f"load: {folder}: the weights do not fit the configuration; missing: "
            f"{', '.join(missing[:4]) or 'none'}; unknown: {', '.join(unknown[:4]) or 'none'}."
        )
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape or weights[name].dtype != tensor.dtype:
            raise ValueError(
                f"load: {folder}: expected {name} to be {tensor.dtype} {list(tensor.shape)}, got "
                f"{weights[name].dtype} {list(weights[name].shape)}."
            )
    model.load_state_dict(weights)


def _write_model(model: nn.Module, folder: Path, class_names: Sequence[str] = ()) -> None:
    kinds = {model_class: kind for kind, (model_class, _) in _MODELS.items()}
    if type(model) not in kinds:
        names = ", ".join(known.__name__ for known in kinds)
        raise TypeError(f"save: expected one of {names} or Pipeline, got {type(model).__name__}.")
    folder.mkdir(exist_ok=True)
    header = {"kind": kinds[type(model)], "version": VERSION, "config": asdict(model.config)}
    if class_names:
        header["class_names"] = list(class_names)
    _write_json(folder / "config.json", header)
    _write_tensors(model.state_dict(), folder / "model.safetensors")


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    # clone: safetensors refuses tensors that share memory, and writes none but contiguous ones.
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path
    )
    _sync(path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"load: {path.parent} is damaged: {path.name} is missing.") from error
    except SafetensorError as error:
        raise ValueError(f"load: {path} is damaged or no safetensors file: {error}.") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _sync(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"load: {path.parent} is damaged: {path.name} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"load: {path} is damaged or no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"load: {path}: expected a JSON object, got {type(value).__name__}.")
    return value


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends without an error.

    A rename cannot replace a folder that holds files, so the old one first steps aside: at every
    moment either it or the new one is whole on the disk.
    """
    if (
        path.exists()
        and not (path / "config.json").is_file()
        and (not path.is_dir() or any(path.iterdir()))
    ):
        raise ValueError(
            f"save: {path} exists and is no checkpoint; it is left as it is. Name another path."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new-{os.getpid()}")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        yield temporary
        _sync(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    aside = _aside(path)
    if path.exists():
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    temporary.rename(path)
    _sync(path.parent)
    if aside.exists():
        shutil.rmtree(aside)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checkpoints(run: Path) -> list[Path]:
    return [
        folder for folder in run.glob(f"checkpoints/{_STEP_FOLDER}*")
        if (folder / "config.json").is_file()
    ]  # fmt: skip
