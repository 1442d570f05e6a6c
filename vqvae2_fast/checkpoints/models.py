"""A model and its configuration in a checkpoint's folder: config.json and model.safetensors.

A model is built only if the weights next to config.json fill it: it is first made without memory
(on torch's meta device), and its names and shapes are compared with the file's header."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from vqvae2_fast.checkpoints.files import (
    check_finite_tensors,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from vqvae2_fast.checkpoints.shards import part_headers, part_path, read_part
from vqvae2_fast.checkpoints.sums import CALIBRATION
from vqvae2_fast.data.images import check_class_names
from vqvae2_fast.files.printable import short
from vqvae2_fast.models.classifier import Classifier, ClassifierConfig
from vqvae2_fast.models.configs import VQVAE2Config, level_names
from vqvae2_fast.models.prior import PRIORS, Prior
from vqvae2_fast.models.stored_weights import DTYPES, restored, stored
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.models.weights_hash import weights_hash
from vqvae2_fast.modules.contexts import unfilled
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.sampling.quantized import Calibration, InputRanges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

__all__ = [
    "VERSION",
    "Model",
    "check_tensors",
    "class_of",
    "described_model",
    "dtype_of",
    "known_models",
    "read_config",
    "read_model",
    "version_of",
    "write_config",
    "write_model",
]

# Increase this when today's readers could not read what a newer package writes. 2 has int8.
VERSION = 2

Model = VQVAE2 | Prior | Classifier
_Config = TypeVar("_Config")
_HEADER_TYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
# What a constructor raises for numbers that fit no model.
_MISFITS = (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError)
_LARGEST_INT = 2**63 - 1


def known_models() -> dict[str, tuple[type[Any], type[Any]]]:
    """Every model and its configuration, by its kind; those of priors are what is registered."""
    return {
        "vqvae2": (VQVAE2, VQVAE2Config),
        **PRIORS,
        "classifier": (Classifier, ClassifierConfig),
    }


def write_model(
    model: nn.Module,
    folder: Path,
    class_names: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    vqvae_hash: str = "",
) -> None:
    """Write config.json and model.safetensors, floating-point numbers rounded to dtype.

    Args:
        dtype: As in `save`: int8 is that of priors, and other models are then in bfloat16.
        vqvae_hash: Replaces the prior's own.

    Raises:
        ValueError: The model is sharded.
    """
    if class_of(model) is not type(model):
        raise ValueError(
            f"expected a whole model, got a sharded {class_of(model).__name__}, of which "
            "this process has only its rows. Load the checkpoint of its run, and save that."
        )
    dtype = dtype_of(model, dtype)
    write_config(model, folder, class_names, dtype, vqvae_hash)
    write_tensors(stored(model.state_dict(), dtype), folder / "model.safetensors")


def dtype_of(model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a model's file in a checkpoint that is saved in `dtype`."""
    return torch.bfloat16 if dtype == torch.int8 and not isinstance(model, Prior) else dtype


def version_of(dtype: torch.dtype) -> int:
    """The lowest version of readers that can read a checkpoint in `dtype`."""
    return 2 if dtype == torch.int8 else 1


def write_config(
    model: nn.Module,
    folder: Path,
    class_names: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    vqvae_hash: str = "",
) -> None:
    """What `write_model` writes beside the weights."""
    kinds = {model_class: kind for kind, (model_class, _) in known_models().items()}
    model_class = class_of(model)
    if not isinstance(model, Model) or model_class not in kinds:
        names = ", ".join(known.__name__ for known in kinds)
        raise TypeError(f"expected one of {names} or Pipeline, got {type(model).__name__}.")
    folder.mkdir(exist_ok=True)
    header: dict[str, Any] = {
        "kind": kinds[model_class],
        "version": version_of(dtype),
        "config": asdict(model.config),
        "dtype": dtype_name(dtype),
    }
    _check_names("", class_names, header["config"])
    if class_names:
        header["class_names"] = list(class_names)
    if word_names := getattr(model, "word_names", ()):
        header["word_names"] = list(word_names)
    vqvae_hash = vqvae_hash or getattr(model, "vqvae_hash", "")
    if vqvae_hash and not (isinstance(model, VQVAE2) and _rounds_codes(model, dtype)):
        header["vqvae_hash"] = vqvae_hash
    calibration = getattr(model, "calibration", None)
    if isinstance(calibration, Calibration):
        # Weights that are rounded here stay calibrated, if they were. Those of a sharded model are
        # not rounded, nor are they all here.
        whole = type(model) is model_class
        same = whole and calibration.weights_hash == weights_hash(model)
        header["calibration"] = {
            "weights_hash": weights_hash(model, dtype) if same else calibration.weights_hash,
            "codes_hash": calibration.codes_hash,
            "margin": calibration.ranges.margin,
        }
        write_tensors(calibration.ranges.largest, folder / CALIBRATION)
    write_json(folder / "config.json", header)


def _rounds_codes(vqvae: VQVAE2, dtype: torch.dtype) -> bool:
    """Whether a file of this dtype has other weights in front of the codes, and so other codes."""
    own = {n: w for n, w in vqvae.state_dict().items() if not n.startswith("decoder.")}
    saved = restored(stored(own, dtype))
    return any(not torch.equal(saved[name], weight) for name, weight in own.items())


def class_of(model: nn.Module) -> type[nn.Module]:
    """A model's class. FSDP2 gives a sharded one another, made of that and its own."""
    sharded = type(model).__name__ == f"FSDP{type(model).__bases__[-1].__name__}"
    return type(model).__bases__[-1] if sharded else type(model)


def read_config(folder: Path) -> dict[str, Any]:
    """The checked contents of config.json: `kind`, `version`, `config`, and a model's `dtype`."""
    header = read_json(folder / "config.json")
    kind, version = header.get("kind"), header.get("version")
    kinds = (*known_models(), "pipeline")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{folder}: expected kind to be one of {kinds}, got {short(repr(kind))}.")
    if type(version) is not int or version < 1:
        raise ValueError(
            f"{folder}: expected version to be an integer >= 1, got {short(repr(version))}."
        )
    if version > VERSION:
        raise ValueError(
            f"{folder} has version {short(version)}; this package reads up to {VERSION}. "
            "Install a newer vqvae2_fast."
        )
    if not isinstance(header.get("config"), dict):
        raise ValueError(f"{folder}: expected config to be an object in config.json.")
    names = header.setdefault("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder}: expected class_names to be a list of names.")
    _check_names(f"{folder}: ", names, header["config"])
    words, count = header.setdefault("word_names", []), header["config"].get("num_words", 0)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{folder}: expected word_names to be a list of words.")
    if words and (len(words) != count or len(set(words)) != len(words)):
        raise ValueError(
            f"{folder}: expected word_names to be {short(count)} different words, got {len(words)}."
        )
    if not isinstance(header.get("vqvae_hash", ""), str):
        raise ValueError(f"{folder}: expected vqvae_hash to be a string in config.json.")
    if not isinstance(header.setdefault("recommended", {}), dict):
        raise ValueError(f"{folder}: expected recommended to be an object in config.json.")
    hashes = header.setdefault("recommended_for", [])
    if not isinstance(hashes, list) or not all(isinstance(one, str) for one in hashes):
        raise ValueError(f"{folder}: expected recommended_for to be a list of hashes.")
    if kind == "pipeline":
        _check_levels(header["config"].get("levels"), folder)
    elif header.setdefault("dtype", "float32") not in tuple(DTYPES):
        raise ValueError(
            f"{folder}: expected dtype to be one of {tuple(DTYPES)}, got "
            f"{short(repr(header['dtype']))}."
        )
    return header


def _check_names(source: str, names: Sequence[str], config: Mapping[str, Any]) -> None:
    try:
        check_class_names(names)
    except ValueError as error:
        raise ValueError(f"{source}{error}") from None
    classes = config.get("num_classes", 0)
    if names and classes and len(names) != classes:
        raise ValueError(
            f"{source}expected class_names to name each of the {short(classes)} classes, got "
            f"{len(names)} names."
        )


def _check_levels(levels: object, folder: Path) -> None:
    # A name becomes part of a path, so only the names of level_names are allowed.
    known = [list(level_names(count)) for count in range(1, 5)]
    if levels not in known:
        raise ValueError(
            f"{folder}: expected levels to be names of levels, coarse to fine, such as "
            f"{list(level_names(2))}, got {short(repr(levels))}."
        )


def read_model(header: dict[str, Any], folder: Path, *, check_finite: bool = True) -> Model:
    """The model of a header from `read_config`, float32, with the weights of model.safetensors.

    Leaves torch's random state as it was.

    Raises:
        ValueError: If the configuration fits no model, or not the weights; with `check_finite`, if
            a weight is NaN or infinite.
    """
    model_class, config = described_model(header, folder)
    expected = _expected_tensors(model_class, config, folder)
    check_tensors(expected, folder, "model", DTYPES[header["dtype"]])
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), unfilled():
        model: Model = model_class(config).float()  # whatever torch's default is
    weights = restored(read_part(folder, "model", check_finite=False))
    if check_finite:  # of the weights themselves, since a scale of int8 can carry them beyond
        check_finite_tensors(weights, part_path(folder, "model"))
    model.load_state_dict(weights)
    if not isinstance(model, Classifier):
        model.vqvae_hash = header.get("vqvae_hash", "")
        if "calibration" in header:
            model.calibration = _calibration(header["calibration"], folder)
    if isinstance(model, Prior):
        model.class_names = tuple(header["class_names"])
        model.word_names = tuple(header["word_names"])
    return model


def described_model(header: dict[str, Any], folder: Path) -> tuple[type[Any], Any]:
    """The class of the model in a header from `read_config`, and its configuration.

    Raises:
        ValueError: If the header names no known class, or the configuration fits none of it.
    """
    known = known_models()
    if header["kind"] not in known:
        raise ValueError(f"{folder} holds a {header['kind']}; expected one of {tuple(known)}.")
    model_class, config_class = known[header["kind"]]
    return model_class, _config(config_class, header["config"], folder)


def _calibration(values: Any, folder: Path) -> Calibration:
    expected = {"weights_hash": str, "codes_hash": str, "margin": float}
    if not isinstance(values, dict) or not all(
        type(values.get(name)) is kind for name, kind in expected.items()
    ):
        raise ValueError(f"{folder}: expected calibration to have {', '.join(expected)}.")
    largest = read_tensors(folder / CALIBRATION)
    for name, ranges in largest.items():
        if ranges.dtype != torch.float32 or ranges.ndim != 2 or (ranges < 0).any():
            raise ValueError(
                f"{folder / CALIBRATION}: expected {short(name)} to be float32 [n, inputs], "
                f"not negative, got {ranges.dtype} {list(ranges.shape)}."
            )
    ranges_of_all = InputRanges(largest, values["margin"])
    return Calibration(ranges_of_all, values["weights_hash"], values["codes_hash"])


def check_tensors(
    expected: Mapping[str, Tensor], folder: Path, part: str, dtype: torch.dtype = torch.float32
) -> None:
    """Raises ValueError unless a part of a checkpoint has tensors of these names, shapes and types.

    Args:
        expected: Weights in float32; on the meta device, shapes and types.
        dtype: The dtype that they were saved in.
    """
    found, path = part_headers(folder, part), part_path(folder, part)
    expected = stored(expected, dtype)
    missing, unknown = sorted(expected.keys() - found), sorted(found.keys() - expected)
    if missing or unknown:
        raise ValueError(
            f"{path}: the weights do not fit the configuration; missing: "
            f"{_some(missing)}; unknown: {_some(unknown)}."
        )
    for name, tensor in expected.items():
        kind, shape = found[name]
        if _HEADER_TYPES.get(kind) != tensor.dtype or shape != tuple(tensor.shape):
            raise ValueError(
                f"{path}: expected {name} to be {tensor.dtype} {list(tensor.shape)}, got "
                f"{_HEADER_TYPES.get(kind, kind)} {list(shape)}."
            )


def _some(names: list[str]) -> str:
    return ", ".join(short(name) for name in names[:4]) or "none"


def _expected_tensors(model_class: type[Any], config: Any, folder: Path) -> dict[str, Tensor]:
    """Names, shapes and types of a configuration's weights, made without memory for them."""
    headers, path = part_headers(folder, "model"), part_path(folder, "model")
    elements = sum(math.prod(shape) for _, shape in headers.values())
    # On the meta device too, layers take memory as objects, as do a codebook's start, a kernel's
    # mask and the coordinates of a prior. Each layer has a tensor of its own, and the file holds
    # the codebook, the kernels and the coordinates.
    tensors, numbers = config.at_least()
    if tensors > len(headers) or numbers > elements:
        raise ValueError(
            f"{path.parent}: config.json describes a larger model than the {len(headers)} "
            f"tensors and {elements} numbers of {path.name}."
        )
    try:
        with torch.device("meta"), unfilled():
            expected: dict[str, Tensor] = model_class(config).state_dict()
            return expected
    except _MISFITS as error:
        raise ValueError(
            f"{path.parent}: config.json does not describe a model: {short(error)}"
        ) from error


def _config(config_class: type[_Config], values: dict[str, Any], folder: Path) -> _Config:
    # Parsed by hand: msgspec skips unknown fields and accepts NaN, and cattrs turns "3" and true
    # into numbers.
    known = get_type_hints(config_class)
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"{folder}: {config_class.__name__} has no field {short(repr(name))}; it has "
                f"{', '.join(known)}."
            )
        if not _is_a(value, known[name]):
            hint = known[name]
            expected = hint.__name__ if isinstance(hint, type) else str(hint)
            raise ValueError(
                f"{folder}: expected {name} of {config_class.__name__} to be "
                f"{expected.removeprefix('typing.')}, got {short(repr(value))}."
            )
    try:
        return config_class(**{name: _tuples(value) for name, value in values.items()})
    except _MISFITS as error:
        raise ValueError(
            f"{folder}: config.json does not describe a model: {short(error)}"
        ) from error


def _is_a(value: object, hint: Any) -> bool:
    """Whether a value from JSON, where tuples are lists, is of the type that a field has."""
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, list):
            return False
        if inner[-1] is ...:
            return all(_is_a(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(map(_is_a, value, inner))
    if hint is float:
        return type(value) in (int, float) and abs(value) < _LARGEST_INT  # type: ignore[arg-type]
    if hint is int:
        return type(value) is int and abs(value) <= _LARGEST_INT
    return type(value) is hint


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
