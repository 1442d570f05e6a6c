"""Checkpoints for tests: priors to save, models to compare, and files changed on purpose."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from helpers.models import SMALL_PRIOR, SMALL_TOP
from vqvae2_fast.models.pixelsnail import PixelSNAIL

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

__all__ = ["assert_equal", "edit", "small_priors"]


def assert_equal(first: Any, second: Any) -> None:
    """Two models have the same configuration and the same weights."""
    assert first.config == second.config
    expected, found = first.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def edit(path: Path, **changes: Any) -> None:
    """Change config.json, and its checksum, as somebody who knows of the checksums would."""
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | changes))
    (path / "files.json").unlink(missing_ok=True)


def small_priors() -> list[PixelSNAIL]:
    """A top and a bottom prior for `SMALL_VQVAE`."""
    torch.manual_seed(1)
    top = PixelSNAIL(SMALL_TOP)
    return [top, PixelSNAIL(replace(SMALL_PRIOR, num_classes=0))]
