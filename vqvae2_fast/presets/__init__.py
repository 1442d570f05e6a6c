"""Named presets: the paper's, small ones that train in minutes, and those for photographs.

A new preset is an entry of the table of one of these files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.console.words import did_you_mean
from vqvae2_fast.presets.paper import PAPER
from vqvae2_fast.presets.photos import PHOTOS
from vqvae2_fast.presets.small import SMALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.training.preset import Preset

__all__ = ["preset", "preset_names", "presets_with_maps"]

_PRESETS = {**SMALL, **PHOTOS, **PAPER}


def preset_names() -> tuple[str, ...]:
    """The names that `preset` knows."""
    return tuple(_PRESETS)


def presets_with_maps(
    num_embeddings: int, level_sizes: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    """The names of the presets whose VQ-VAE makes such code maps.

    Args:
        num_embeddings: Number of codes, K.
        level_sizes: Height and width of each level's map, top first.
    """
    wanted = (num_embeddings, tuple(level_sizes))
    return tuple(
        name
        for name, known in _PRESETS.items()
        if (known.vqvae.num_embeddings, tuple(known.vqvae.level_sizes)) == wanted
    )


def preset(name: str) -> Preset:
    """The models and trainings of a preset.

    Raises:
        ValueError: If no preset has this name.
    """
    if name not in _PRESETS:
        raise ValueError(
            f"expected the name of a preset, one of {', '.join(_PRESETS)}, got {name!r}."
            f"{did_you_mean(name, _PRESETS)}"
        )
    return _PRESETS[name]
