"""The port's checkpoint files: read without executing a pickle, explained where they do not fit.

Forms that occur: a bare state dict (`checkpoint/vqvae_560.pt`), `{"model": state dict, "args":
Namespace}` (`checkpoint/pixelsnail_top_420.pt`), keys prefixed by `module.` (data parallel) or
`_orig_mod.` (torch.compile), and both of torch's weight-norm layouts.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Checkpoint", "LoadsPortFiles", "StateDictError", "load_checkpoint"]

_PREFIXES = ("module.", "_orig_mod.")
_WEIGHT_NORM = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}

# What torch, zipfile and safetensors raise for files that tools/fuzz damages.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
_ADVICE = ("Weights only load failed", "Check the documentation", "(1)", "(2)", "Please file")

# A part of a key, and whose files have such keys.
_ORIGINS = (
    ("_codebook.", "vector-quantize-pytorch: use vqvae2_fast.compat.lucidrains.VectorQuantize"),
    ("quantizers.", "a native VQVAE2 of vqvae2_fast: use vqvae2_fast.load and `from_native`"),
    ("level_blocks.", "OpenAI's Jukebox"),
    ("first_stage_model.", "a latent diffusion model"),
    ("quantize.embedding.", "taming-transformers (VQGAN)"),
    ("_vq_vae.", "a VQ-VAE tutorial with one level"),
    ("horizontal.conv.conv.", "a PixelSNAIL of the port, its second stage: use PixelSNAIL"),
    ("quantize_t.embed", "a VQVAE of the port, its first stage: use VQVAE"),
)


class StateDictError(ValueError, RuntimeError):
    """A state dict that does not fit: ValueError, and RuntimeError as `nn.Module` raises."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors under the port's own keys, and the script's arguments if saved."""

    state_dict: dict[str, Tensor]
    args: argparse.Namespace | None = None


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of the port, or its tensors in a safetensors file.

    The file may hold tensors, plain containers, numbers, strings and an `argparse.Namespace`.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is damaged; it asks for anything else, and is refused without running any of
            it; or it holds no state dict.
    """
    path = Path(path)
    with open_untrusted(path) as file:
        try:
            loaded = _read(path, file)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"load_checkpoint: {printable(path)} is refused, and nothing of it was run. A "
                "checkpoint of the port holds tensors and an argparse.Namespace; this file asks "
                f"for something else, or is no checkpoint: {_reason(error)}"
            ) from error
        except _DAMAGE as error:
            raise ValueError(
                f"load_checkpoint: {printable(path)} is damaged or no checkpoint: {_reason(error)}"
            ) from error
    args = loaded.get("args") if isinstance(loaded, dict) else None
    if args is not None and not isinstance(args, argparse.Namespace):
        raise ValueError(
            f"load_checkpoint: expected 'args' of {printable(path)} to be an argparse.Namespace, "
            f"got {type(args).__name__}."
        )
    return Checkpoint(_unwrapped(loaded, printable(path)), args)


def _read(path: Path, file: IO[bytes]) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            if any(info.compress_type for info in archive.infolist()):
                raise ValueError("it holds compressed records, which torch.save never makes")
    file.seek(0)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, map_location="cpu", weights_only=True)


def _reason(error: BaseException) -> str:
    """What torch complains of, without its advice to switch the safe loader off."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith(_ADVICE)]
    return short(reasons[0] if reasons else type(error).__name__, 200)


def _unwrapped(loaded: Any, source: str) -> dict[str, Tensor]:
    if isinstance(loaded, dict):
        for key in ("model", "state_dict"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
    strangers = (
        [key for key, value in loaded.items() if not isinstance(value, Tensor)]
        if isinstance(loaded, dict)
        else [type(loaded).__name__]
    )
    if strangers or not loaded:
        raise StateDictError(
            f"{source}: expected a state dict (names to tensors), or {{'model': state dict, "
            f"'args': ...}}; found {', '.join(map(short, strangers[:5])) or 'nothing'} instead."
        )
    return _plain_keys(loaded)


def _plain_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The port's own keys: without a wrapper's prefix, weight norm as `weight_g` and `weight_v`."""
    plain = dict(state_dict)
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in plain)), None):
        plain = {key[len(prefix) :]: value for key, value in plain.items()}
    return {renamed_weight_norm(key): value for key, value in plain.items()}


def renamed_weight_norm(key: str) -> str:
    """A key of `torch.nn.utils.parametrizations.weight_norm` as `weight_norm` would name it."""
    for new, old in _WEIGHT_NORM.items():
        if key.endswith(new):
            return key[: -len(new)] + old
    return key


class LoadsPortFiles(nn.Module):
    """Gives a model of the port a `load_state_dict` for every form of its files."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state dict in any of the forms that this module's head lists.

        Raises:
            StateDictError: Keys are missing or unexpected (with `strict`), or shapes differ. It
                lists them, with the likely source of the file.
        """
        plain = _unwrapped(dict(state_dict), f"{type(self).__name__}.load_state_dict")
        problem = _misfit(self, plain, strict)
        if problem:
            raise StateDictError(problem)
        return super().load_state_dict(plain, strict, assign)

    @staticmethod
    def arguments_of(state_dict: dict[str, Tensor]) -> dict[str, Any]:
        """The constructor arguments that fit a state dict of this class."""
        raise NotImplementedError


def _misfit(model: LoadsPortFiles, state_dict: dict[str, Tensor], strict: bool) -> str | None:
    """Why the state dict does not fit the model, or None."""
    name = type(model).__name__
    own = model.state_dict()
    missing = [key for key in own if key not in state_dict] if strict else []
    unexpected = [key for key in state_dict if key not in own] if strict else []
    shapes = [
        f"{short(key)} {list(state_dict[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    if not (missing or unexpected or shapes):
        return None
    lines = [f"{name}.load_state_dict: the state dict does not fit this model."]
    for kind, entries in (
        ("missing keys", missing),
        ("unexpected keys", unexpected),
        ("other shapes", shapes),
    ):
        if entries:
            rest = f", and {len(entries) - 8} more" if len(entries) > 8 else ""
            lines.append(f"  {len(entries)} {kind}: {', '.join(map(short, entries[:8]))}{rest}")
    lines.append(f"  Likely source: {_likely_source(model, own, state_dict)}")
    return "\n".join(lines)


def _likely_source(
    model: LoadsPortFiles, own: dict[str, Tensor], state_dict: dict[str, Tensor]
) -> str:
    name = type(model).__name__
    try:
        file_arguments = model.arguments_of(state_dict)
    except (KeyError, IndexError, ValueError):
        for part, origin in _ORIGINS:
            if any(part in key for key in state_dict) and not any(part in key for key in own):
                return f"{origin}."
        return "another package, or a part of a model; its keys are not those of the port."
    shapes = [each["quantize_t.embed"].shape for each in (state_dict, own) if name == "VQVAE"]
    if shapes and shapes[0] == shapes[1][::-1] != shapes[1]:
        return (
            "a file whose codebooks are [K, D]; the port's are [D, K], codes are columns. "
            "Transpose quantize_*.embed and quantize_*.embed_avg."
        )
    own_arguments = model.arguments_of(own)
    other = [
        f"{key}={value!r} (this model: {own_arguments.get(key)!r})"
        for key, value in file_arguments.items()
        if value != own_arguments.get(key)
    ]
    if not other:
        return f"a changed {name}: its sizes are those of this model, its keys are not."
    call = ", ".join(f"{key}={value!r}" for key, value in file_arguments.items())
    with torch.device("meta"):
        fitting = type(model)(**file_arguments).state_dict()
    fits = {key: value.shape for key, value in fitting.items()} == {
        key: value.shape for key, value in state_dict.items()
    }
    verdict = "It loads into" if fits else "It is near, but does not load into,"
    return f"a {name} made with {', '.join(other)}. {verdict} {name}({call})."
