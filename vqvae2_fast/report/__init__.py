"""Pictures, curves and reports of runs."""

from vqvae2_fast.report.grids import (
    image_grid,
    picture_of_reconstructions,
    reconstruction_grid,
    sample_grid,
)
from vqvae2_fast.report.html import Section, write_report

__all__ = [
    "Section",
    "image_grid",
    "picture_of_reconstructions",
    "reconstruction_grid",
    "sample_grid",
    "write_report",
]
