"""Pretrained pipelines that come with the package.

Each is a folder vqvae2_fast/pretrained/<preset>/, written by `save(pipeline, folder,
dtype=torch.bfloat16)`, with card.json next to its config.json: an object with `licence`, `data`,
`command` (how it was made) and `metrics` (held out), and if there are any `sampling` (the
recommended settings) and `samples` (what plain samples are like).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqvae2_fast.checkpoints.checkpoint import load
from vqvae2_fast.checkpoints.files import read_json
from vqvae2_fast.console.words import did_you_mean
from vqvae2_fast.sampling.pipeline import Pipeline

if TYPE_CHECKING:
    import torch

__all__ = ["from_preset", "pretrained_card", "pretrained_folder", "pretrained_names"]

_FOLDER = Path(__file__).parents[1] / "pretrained"
_CARD_FIELDS = {"licence": str, "data": str, "command": str, "metrics": dict}


def from_preset(name: str, device: str | torch.device = "cpu") -> Pipeline:
    """The pretrained pipeline of a preset, in evaluation mode; its weights are in the package.

    To make an untrained model of any preset, use its configuration: `VQVAE2(preset(name).vqvae)`.

    Raises:
        ValueError: If the package has no weights for it.
    """
    pipeline = load(pretrained_folder(name), device, expect=Pipeline)
    return replace(pipeline, recommended=pretrained_card(name).get("sampling", {}))


def pretrained_names() -> tuple[str, ...]:
    """The presets whose weights are in the package."""
    return tuple(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))


def pretrained_folder(name: str) -> Path:
    """The folder of a preset's pretrained pipeline. Raises as `from_preset` does."""
    if name not in pretrained_names():
        raise ValueError(
            f"the package has no weights of {name!r}; it has those of "
            f"{', '.join(pretrained_names()) or 'none'}."
            f"{did_you_mean(str(name), pretrained_names())} "
            "The other presets, which `vqvae2-fast info --presets` lists, have to be trained: "
            "`vqvae2-fast train-vqvae --preset NAME`."
        )
    return _FOLDER / name


def pretrained_card(name: str) -> dict[str, Any]:
    """What card.json says of a preset's weights: `licence`, `data`, `command`, `metrics`.

    Raises:
        ValueError: As `from_preset`, or a field is missing.
    """
    path = pretrained_folder(name) / "card.json"
    card = read_json(path)
    for field, kind in _CARD_FIELDS.items():
        if not isinstance(card.get(field), kind):
            raise ValueError(f"{path}: expected {field} to be of type {kind.__name__}.")
    return card
