"""The port's checkpoint files: reads them without executing a pickle, and explains misfits.

Forms that occur: a bare state dict (`checkpoint/vqvae_560.pt`); one among other things, as in
`{"model": state dict, "args": Namespace, "optimizer": ...}` (`checkpoint/pixelsnail_top_420.pt`);
keys with a prefix such as `module.` (data parallel), `_orig_mod.` (torch.compile) or `model.`
(Lightning); both of torch's weight-norm layouts, and weights whose norm was removed; codebooks as
`[K, D]`, also those of an `nn.Embedding`. Each of them is converted exactly, or refused. Only a
codebook `embed` with K = D does not tell its layout: it is taken as `[D, K]`, the port's own.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2_fast.checkpoints.files import read_tensors
from vqvae2_fast.compat.rosinality.torch_file import read_torch_file
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.ops._checks import dtype_name

__all__ = ["Checkpoint", "LoadsPortFiles", "StateDictError", "load_checkpoint", "origin_of"]

_WEIGHT_NORM = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
# Names of the state dict to take if a file holds several.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
# A key that every whole model has, and that a part of one lacks.
_FIRST_KEY = re.compile(r"(?:^|.*\.)(?=enc_b\.blocks\.0\.weight$|horizontal\.conv\.conv\.)")
_PARTS = ("module.", "_orig_mod.")  # prefixes of any module

# A part of a key, and the origin of files that have such keys.
_ORIGINS = (
    ("_codebook.", "vector-quantize-pytorch: use vqvae2_fast.compat.lucidrains.VectorQuantize"),
    ("quantizers.", "a native VQVAE2 of vqvae2_fast: use vqvae2_fast.load and `from_native`"),
    ("level_blocks.", "OpenAI's Jukebox"),
    ("first_stage_model.", "a latent diffusion model"),
    ("quantize.embedding.", "taming-transformers (VQGAN)"),
    ("_vq_vae.", "a VQ-VAE tutorial with one level"),
    ("horizontal.conv.conv.", "a PixelSNAIL of the port, its second stage: use {PixelSNAIL}"),
    ("quantize_b.embed", "a VQVAE of the port, its first stage: use {VQVAE}"),
)


class StateDictError(ValueError, RuntimeError):
    """A state dict that does not fit: ValueError, and RuntimeError as `nn.Module` raises."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors under the port's own keys, and the script's arguments if saved."""

    state_dict: dict[str, Tensor]
    args: argparse.Namespace | None = None


def load_checkpoint(path: str | Path, *, check_finite: bool = True) -> Checkpoint:
    """Read a checkpoint of the port, or its tensors in a safetensors file.

    The file may hold tensors, plain containers, numbers, strings, paths and an
    `argparse.Namespace`; NumPy numbers and paths come back as Python numbers and strings. Of a file
    that holds more than one model's tensors, those of the port's model are taken.

    Args:
        check_finite: Whether to refuse weights that are NaN or infinite.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: The file is damaged, or asks for anything else: it is refused, and nothing of it
            runs. Or it holds no state dict, several, or weights that are not finite.
    """
    path = Path(path)
    source = printable(path)
    if path.suffix == ".safetensors":
        return Checkpoint(_plain_keys(read_tensors(path, check_finite=check_finite), source))
    loaded = read_torch_file(path)
    args = loaded.get("args") if isinstance(loaded, dict) else None
    if isinstance(args, dict):
        args = argparse.Namespace(**{str(name): value for name, value in args.items()})
    if args is not None and not isinstance(args, argparse.Namespace):
        raise ValueError(
            f"{source}: expected 'args' to be an argparse.Namespace or a dictionary, got "
            f"{type(args).__name__}."
        )
    plain = _plain_keys(_unwrapped(loaded, source), source)
    for key, tensor in plain.items():
        if tensor.layout != torch.strided or tensor.numel() > tensor.untyped_storage().nbytes():
            # A model is made with the sizes of its tensors, so their values have to exist.
            raise ValueError(f"{source}: {short(key)} has fewer values than its shape says.")
        if check_finite and tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{source}: expected finite numbers, got NaN or infinity in {short(key)}. Load "
                "another checkpoint, or call load_checkpoint(..., check_finite=False)."
            )
    return Checkpoint(plain, args)


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _unwrapped(loaded: Any, source: str) -> dict[str, Tensor]:
    """The content of a file as a state dict, or the state dict in it."""
    if _is_state_dict(loaded):
        state_dict: dict[str, Tensor] = loaded
        return state_dict
    held = loaded if isinstance(loaded, dict) else {}
    found = {str(name): value for name, value in held.items() if _is_state_dict(value)}
    if len(found) > 1:
        found = {name: found[name] for name in _WRAPPERS if name in found} or found
    if len(found) == 1 or (found and next(iter(found)) in _WRAPPERS):
        return next(iter(found.values()))
    if found:
        what = f"several, under {short(', '.join(found))}; keep the one you mean"
    elif held:
        kinds = (f"{name!r}: {type(value).__name__}" for name, value in held.items())
        what = f"none in {{{short(', '.join(kinds))}}}"
    else:
        what = f"a {type(loaded).__name__}" + (" without entries" if loaded == {} else "")
    raise StateDictError(
        f"{source}: expected a state dict (names to tensors), alone or under a name such as "
        f"'model', found {what}."
    )


def _plain_keys(
    state_dict: Mapping[str, Tensor], source: str, *, only_the_model: bool = True
) -> dict[str, Tensor]:
    """The port's own keys and layouts of tensors, without a wrapper's prefix.

    Args:
        only_the_model: Leave out what does not have the prefix of the model.
    """
    plain = {renamed_weight_norm(key): value for key, value in state_dict.items()}
    prefixes = sorted({match[0] for key in plain if (match := _FIRST_KEY.match(key))})
    if len(prefixes) > 1 and "" not in prefixes:
        raise StateDictError(
            f"{source}: expected the tensors of one model, found several, with the prefixes "
            f"{short(', '.join(prefixes))}. Keep the keys of one of them."
        )
    if prefixes:
        prefix = prefixes[0]  # "" if a model has no prefix
        if prefix and only_the_model:
            plain = {key: value for key, value in plain.items() if key.startswith(prefix)}
        plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    while prefix := next((p for p in _PARTS if all(key.startswith(p) for key in plain)), ""):
        plain = {key[len(prefix) :]: value for key, value in plain.items()}
    if any(key.startswith("horizontal.") for key in plain):
        return _with_weight_norm(plain)
    return _with_codes_as_columns(plain)


def _with_weight_norm(plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose norm was removed, split again into norm and direction."""
    split: dict[str, Tensor] = {}
    for key, value in plain.items():
        if not key.endswith(".weight") or value.dim() < 2:
            split[key] = value
            continue
        norm = torch.norm_except_dim(value, 2, 0)
        split[f"{key}_g"] = norm
        # A row of zeros has no direction, so any will do.
        split[f"{key}_v"] = torch.where(norm > 0, value, torch.ones_like(value))
    return split


def _with_codes_as_columns(plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Codebooks as `[D, K]` with the averages that a quantiser of the port has."""
    turned = dict(plain)
    for level in ("quantize_t", "quantize_m", "quantize_b"):
        table = turned.pop(f"{level}.embed.weight", None)  # an nn.Embedding, [K, D]
        if table is not None:
            turned[f"{level}.embed"] = table.t().contiguous()
            turned.setdefault(f"{level}.embed_avg", turned[f"{level}.embed"].clone())
            turned.setdefault(
                f"{level}.cluster_size", torch.ones(len(table), dtype=torch.float32, device="cpu")
            )
        embed, sizes = turned.get(f"{level}.embed"), turned.get(f"{level}.cluster_size")
        if embed is None or sizes is None or embed.dim() != 2 or sizes.dim() != 1:
            continue
        if embed.shape[0] == len(sizes) != embed.shape[1]:
            for name in ("embed", "embed_avg"):
                if (rows := turned.get(f"{level}.{name}")) is not None and rows.dim() == 2:
                    turned[f"{level}.{name}"] = rows.t().contiguous()
    return turned


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
        """Load a state dict in any of the forms that this module's docstring lists.

        Raises:
            StateDictError: Keys are missing or unexpected (with `strict`), or shapes differ. It
                lists them, with the likely source of the file.
        """
        source = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state_dict, Mapping):
            remedy = (
                "its state_dict"
                if isinstance(state_dict, Checkpoint)
                else "load_checkpoint(path).state_dict"
            )
            raise TypeError(
                f"{source}: expected a state dict (names to tensors), got "
                f"{type(state_dict).__name__}; pass {remedy}."
            )
        plain = _plain_keys(_unwrapped(dict(state_dict), source), source, only_the_model=False)
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
    dtypes = [
        f"{short(key)} {dtype_name(state_dict[key].dtype)}, expected {dtype_name(own[key].dtype)}"
        for key in own
        if key in state_dict and not state_dict[key].is_floating_point()
    ]
    if not (missing or unexpected or shapes or dtypes):
        return None
    lines = [f"{name}.load_state_dict: the state dict does not fit this model."]
    for kind, entries in (
        ("missing keys", missing),
        ("unexpected keys", unexpected),
        ("other shapes", shapes),
        ("other dtypes", dtypes),
    ):
        if entries:
            rest = f", and {len(entries) - 8} more" if len(entries) > 8 else ""
            lines.append(f"  {len(entries)} {kind}: {', '.join(map(short, entries[:8]))}{rest}")
    lines.append(f"  Likely source: {_likely_source(model, own, state_dict)}")
    return "\n".join(lines)


def origin_of(keys: Iterable[str], name: str) -> str | None:
    """Where keys that do not fit a class of the port come from, and what loads them, if known.

    Args:
        name: Of the class: VQVAE or PixelSNAIL.
    """
    loaders = {"VQVAE": "VQVAE or load_vqvae", "PixelSNAIL": "PixelSNAIL or load_pixelsnail"}
    keys = list(keys)
    for part, origin in _ORIGINS:
        if f"{{{name}}}" not in origin and any(part in key for key in keys):
            return origin.format(**loaders)
    return None


def _likely_source(
    model: LoadsPortFiles, own: dict[str, Tensor], state_dict: dict[str, Tensor]
) -> str:
    name = type(model).__name__
    shared = own.keys() & state_dict.keys()
    try:
        file_arguments = model.arguments_of(state_dict)
    except (KeyError, IndexError, ValueError):
        if origin := origin_of(state_dict, name):
            return f"{origin}."
        if shared:
            return f"a part of a {name}, or a changed one: it has {len(shared)} of {len(own)} keys."
        return "another package: none of its keys is one of the port's."
    own_arguments = model.arguments_of(own)
    other = [
        f"{key}={value!r} (this model: {own_arguments.get(key)!r})"
        for key, value in file_arguments.items()
        if value != own_arguments.get(key)
    ]
    if not other:
        others = len(state_dict.keys() - own.keys())
        return (
            f"a changed {name}, made with the arguments of this model: it has {len(shared)} of its "
            f"{len(own)} keys, and {others} others."
        )
    call = ", ".join(f"{key}={value!r}" for key, value in file_arguments.items())
    with torch.device("meta"):
        fitting = type(model)(**file_arguments).state_dict()
    fits = {key: value.shape for key, value in fitting.items()} == {
        key: value.shape for key, value in state_dict.items()
    }
    verdict = "It loads into" if fits else "It is near, but does not load into,"
    return f"a {name} made with {', '.join(other)}. {verdict} {name}({call})."
