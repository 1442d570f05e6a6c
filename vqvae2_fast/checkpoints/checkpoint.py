"""Checkpoints: folders of safetensors and JSON, renamed into place when complete.

A checkpoint holds config.json (`kind`, `version`, `config`, `dtype`), model.safetensors and, while
training, average.safetensors (the Polyak average), optimizer.safetensors, state.json and, for a
training with a discriminator, companion.safetensors; files.json has the checksums of all of them.
A run of several processes with a sharded prior has its tensors in shards instead; see `shards`.
`kind` is vqvae2, classifier, the name of a registered prior such as pixelsnail, or pipeline: a
folder of such folders. `dtype` is that of the floating-point numbers in model.safetensors: float32,
bfloat16 for half the size, or int8 for a quarter of a prior's (see `models.stored_weights`).
Nothing is ever unpickled. `load` returns a model to use, in float32 whatever the file's dtype;
`load_training` returns the whole state of a run.
"""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch

from vqvae2_fast.checkpoints.files import (
    DamagedError,
    read_json,
    replacing,
    write_json,
    write_tensors,
)
from vqvae2_fast.checkpoints.locate import as_path, checkpoint_folder, previous
from vqvae2_fast.checkpoints.models import (
    VERSION,
    Model,
    check_tensors,
    dtype_of,
    known_models,
    read_config,
    read_model,
    version_of,
    write_config,
    write_model,
)
from vqvae2_fast.checkpoints.shards import has_part, new_save, part_headers, part_path, read_part
from vqvae2_fast.checkpoints.sums import CALIBRATION, SHARDS, check_sums, write_index, write_sums
from vqvae2_fast.files.printable import short
from vqvae2_fast.models.code_checks import check_priors_fit
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.models.stored_weights import DTYPES
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.models.weights_hash import check_made_for, weights_hash
from vqvae2_fast.modules.contexts import without_compiler
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.sampling.prior import interface_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

__all__ = [
    "VERSION",
    "DamagedError",
    "TrainingState",
    "checkpoint_folder",
    "class_names",
    "load",
    "load_training",
    "read_config",
    "save",
    "save_training",
    "sharded_save",
]

_COUNTS = ("steps", "batch_size", "accumulate")  # of the settings of a training
_FOR_LOAD = ("config.json", SHARDS, "model.safetensors", "average.safetensors", CALIBRATION)
_Saved = TypeVar("_Saved", bound=Model | Pipeline)


@dataclass
class TrainingState:
    """All that a run needs to continue as if it had never stopped.

    Args:
        state: `step`, `train` (the settings), `metrics`, and what the run added.
        companion: What the stage keeps beside the model, such as a discriminator, or None.
    """

    model: Model
    average: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    companion: dict[str, Tensor] | None = None


def save(
    obj: nn.Module | Pipeline,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    class_names: Sequence[str] = (),
) -> None:
    """Write a model or a pipeline as a folder at `path`, replacing a checkpoint already there.

    Args:
        obj: Of a model that `torch.compile` has wrapped, the original is written.
        dtype: The dtype of the weights in the file. torch.bfloat16 rounds them, codebooks too, to 8
            bits of precision and takes half the space. torch.int8 takes a quarter for a prior: its
            matrices and convolutions become integers up to 127 with a scale for each output, and
            all else, VQ-VAEs and classifiers too, is in bfloat16. `load` makes float32 modules.
        class_names: Names of the labels, kept in config.json (`class_names` reads them back); by
            default those of a pipeline or of a loaded prior.

    Raises:
        TypeError: If `obj` is not a VQVAE2, Classifier, registered prior or Pipeline of such,
            `path` is no path, or dtype is none of these.
        ValueError: If `path` exists and is not a checkpoint (nothing else is replaced), or a prior
            of the pipeline is known to model the codes of another VQ-VAE.
        OSError: If it cannot be written (a full disk, for example); what was there before is
            unchanged.
    """
    if dtype not in DTYPES.values():
        raise TypeError(f"expected dtype to be one of {tuple(DTYPES)}, got {dtype}.")
    place = as_path("path", path, remedy="The order is save(obj, path).")
    obj = without_compiler(obj)
    with replacing(place) as folder:
        if isinstance(obj, Pipeline):
            _write_pipeline(obj, folder, class_names or obj.class_names, dtype)
        else:
            write_model(obj, folder, class_names or getattr(obj, "class_names", ()), dtype)
        write_sums(folder)


def _write_pipeline(
    pipeline: Pipeline, folder: Path, class_names: Sequence[str], dtype: torch.dtype
) -> None:
    vqvae, names = pipeline.vqvae, level_names(len(pipeline.priors))
    if not isinstance(vqvae, VQVAE2):
        raise TypeError(f"expected vqvae to be a VQVAE2, got {type(vqvae).__name__}.")
    if next(vqvae.parameters()).dtype == torch.float32:  # the hash depends on the dtype
        hashes = (getattr(prior, "vqvae_hash", "") for prior in pipeline.priors)
        made_for = {f"prior_{name}": digest for name, digest in zip(names, hashes, strict=True)}
        check_made_for(vqvae, made_for)
    header: dict[str, Any] = {
        "kind": "pipeline",
        "version": version_of(dtype),
        "class_names": list(class_names),
        "config": {"levels": list(names)},
    }
    saved_hash = weights_hash(vqvae, saved_as=dtype_of(vqvae, dtype))
    if pipeline.recommended:
        header["recommended"] = dict(pipeline.recommended)
        hashes_of_priors = [weights_hash(prior, saved_as=dtype) for prior in pipeline.priors]
        header["recommended_for"] = [saved_hash, *hashes_of_priors]
    write_json(folder / "config.json", header)
    write_model(vqvae, folder / "vqvae", dtype=dtype)
    for name, prior in zip(names, pipeline.priors, strict=True):
        # A prior that is loaded without its pipeline knows the names too.
        own = class_names if interface_of(prior).num_classes else ()
        write_model(prior, folder / f"prior_{name}", own, dtype, vqvae_hash=saved_hash)
    for part in folder.iterdir():
        if part.is_dir():
            write_sums(part)


def save_training(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    average: Mapping[str, Tensor] | None = None,
    companion: Mapping[str, Tensor] | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write a run's checkpoint: the model as it is, its average, the optimiser and the state.

    Raises as `save` does.
    """
    with replacing(Path(path)) as folder:
        write_model(model, folder, class_names)
        if average is not None:
            write_tensors(average, folder / "average.safetensors")
        write_tensors(optimizer, folder / "optimizer.safetensors")
        if companion is not None:
            write_tensors(companion, folder / "companion.safetensors")
        write_json(folder / "state.json", dict(state))
        write_sums(folder)


@contextmanager
def sharded_save(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    state: Mapping[str, Any],
    class_names: Sequence[str] = (),
) -> Iterator[tuple[str, str, list[dict[str, int]]]]:
    """A run's checkpoint at `path` of which each process writes a shard, inside the block.

    One process enters it, once for all; the checkpoint has its name when the block ends.

    Yields:
        For `write_shard`, the folder and the name of the save; and a list for the checksums that it
        returned, in the order of the processes.

    Raises as `save` does.
    """
    with replacing(Path(path)) as folder:
        write_config(model, folder, class_names)
        write_json(folder / "state.json", dict(state))
        save, sums = new_save(), list[dict[str, int]]()
        yield str(folder), save, sums
        write_index(folder, save, sums)
        write_sums(folder)


@overload
def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    check_finite: bool = True,
) -> Model | Pipeline: ...
@overload
def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    expect: type[_Saved],
    check_finite: bool = True,
) -> _Saved: ...
def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    expect: type[_Saved] | None = None,
    check_finite: bool = True,
) -> Model | Pipeline:
    """The VQVAE2, prior, Classifier or Pipeline saved at `path`, in evaluation mode.

    A model from a run has its averaged weights if the run kept an average. `path` may also be the
    folder of a run, whose latest checkpoint is then loaded; RUN/best is the run's best one.

    Args:
        expect: The class that must be there, for example VQVAE2, or Prior for any prior.
        check_finite: Whether to refuse weights that are NaN or infinite.

    Raises:
        DamagedError: If the checkpoint is damaged (a ValueError); names the one before it.
        ValueError: If it is of an unknown kind, of a newer version or not of the class `expect`, if
            its parts do not belong together, or if a weight is not finite.
        FileNotFoundError, TypeError: If there is none, or `path` is no path.
    """
    folder = checkpoint_folder(path)
    with _offering_previous(folder):
        found: Model | Pipeline = _load(folder, device, expect, check_finite)
    return found


def _load(
    folder: Path, device: str | torch.device, expect: type[_Saved] | None, check_finite: bool
) -> Any:
    check_sums(folder, _FOR_LOAD)
    header = read_config(folder)
    found: str = header["kind"]
    classes = {kind: known for kind, (known, _) in known_models().items()} | {"pipeline": Pipeline}
    if expect is not None and not issubclass(classes[found], expect):
        names = {known: kind for kind, known in classes.items()} | {Prior: "prior"}
        raise ValueError(f"{folder}: expected a {names[expect]}, found a {found}.")
    if found == "pipeline":
        return _load_pipeline(folder, header, device, check_finite)
    model = read_model(header, folder, check_finite=check_finite)
    if has_part(folder, "average"):
        check_tensors(dict(model.named_parameters()), folder, "average")
        weights = read_part(folder, "average", check_finite=check_finite)
        model.load_state_dict(weights, strict=False)
    return model.to(device).eval()


def _load_pipeline(
    folder: Path, header: dict[str, Any], device: str | torch.device, check_finite: bool
) -> Pipeline:
    levels: list[str] = header["config"]["levels"]
    vqvae: VQVAE2 = _load(folder / "vqvae", device, VQVAE2, check_finite)
    priors: list[Prior] = [
        _load(folder / f"prior_{level}", device, Prior, check_finite) for level in levels
    ]
    config = vqvae.config
    by_path = {f"{folder}/prior_{n}": p.config for n, p in zip(levels, priors, strict=True)}
    check_priors_fit(by_path, config.num_embeddings, config.level_sizes, f"priors of {folder}")
    made_for = {f"{folder}/prior_{n}": p.vqvae_hash for n, p in zip(levels, priors, strict=True)}
    check_made_for(vqvae, made_for)
    tuned_for = header["recommended_for"]
    if tuned_for and tuned_for != [weights_hash(model) for model in (vqvae, *priors)]:
        raise ValueError(
            f"{folder}: its recommended settings were tuned for other weights than these. "
            "Load the VQ-VAE and the priors one by one, and have `vqvae2-fast tune` find their "
            "settings."
        )
    try:
        return Pipeline(vqvae, priors, header["class_names"], header["recommended"])
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def load_training(
    path: str | os.PathLike[str], *, share: tuple[int, int] = (0, 1)
) -> TrainingState:
    """The model with its raw weights, and all that a run saved with it. Raises as `load` does.

    Args:
        share: A process's number and how many there are. Of the average and the optimiser's tensors
            only its rows are read, as FSDP2 shares them out.
    """
    folder = checkpoint_folder(path)
    with _offering_previous(folder):
        check_sums(folder)
        header = read_config(folder)
        if not (folder / "state.json").exists():
            raise ValueError(
                f"{folder} has no state.json: it holds only a model, which is not "
                "enough to continue a run. Name the folder of a run, or a checkpoint in its "
                "checkpoints folder."
            )
        state = _state(folder)
        model = read_model(header, folder)
        weights = dict(model.named_parameters())
        average = None
        if has_part(folder, "average"):
            check_tensors(weights, folder, "average")
            average = read_part(folder, "average", share=share)
        # A fused optimiser reads as much of each tensor as its weight has numbers.
        for name, (kind, shape) in part_headers(folder, "optimizer").items():
            owner, _, key = name.rpartition(".")
            weight = weights.get(owner)
            fits = weight is not None and shape == (() if key == "step" else tuple(weight.shape))
            if not fits or kind != "F32":
                path = part_path(folder, "optimizer")
                raise ValueError(f"{path}: {short(name)} fits no weight of the model.")
        return TrainingState(
            model=model,
            average=average,
            optimizer=read_part(folder, "optimizer", share=share),
            state=state,
            companion=read_part(folder, "companion") if has_part(folder, "companion") else None,
        )


def class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the labels that a checkpoint was trained with; empty without classes."""
    folder = checkpoint_folder(path)
    check_sums(folder, ("config.json",))
    return tuple(read_config(folder)["class_names"])


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    state = read_json(path)
    step = state.get("step")
    if type(step) is not int or step < 0:
        raise ValueError(f"{path}: expected step to be an integer >= 0, got {short(repr(step))}.")
    for name in ("train", "metrics", "identity"):
        # Older versions had no identity.
        if not isinstance(state.get(name, {} if name == "identity" else None), dict):
            raise ValueError(f"{path}: expected {name} to be an object.")
    numbers = {f"train.{name}": state["train"].get(name, 1) for name in _COUNTS}
    for name, value in (numbers | {"global_batch": state.get("global_batch", 1)}).items():
        if type(value) is not int or value < 1:
            raise ValueError(
                f"{path}: expected {name} to be an integer >= 1, got {short(repr(value))}."
            )
    return state


@contextmanager
def _offering_previous(folder: Path) -> Iterator[None]:
    """Adds what to do instead to the error about a run's damaged checkpoint."""
    try:
        yield
    except DamagedError as error:
        earlier = previous(folder)
        if earlier is None:
            raise
        command = shlex.join(["mv", str(folder), f"{folder}.damaged"])
        raise DamagedError(
            f"{error}\nThe checkpoint before it is whole: {earlier}. Load it by its path, or "
            f"continue the run from it: `{command}`, then resume its training."
        ) from error
