"""Writes pictures: the file on the disk is whole, or it is the one that was there before."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from vqvae2_fast.files.durable import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

__all__ = ["write_picture"]

_DPI = 110  # of figures


def write_picture(path: Path, picture: Image.Image | Figure) -> None:
    """Write a picture as PNG and create its folder. Raises what `write_file` raises."""
    png = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(png, format="PNG")
    else:
        picture.savefig(png, dpi=_DPI, format="png")
    write_file(path, png.getvalue())
