"""Pictures, curves and reports of runs."""

from vqvae2_fast.report.grids import image_grid, reconstruction_grid, sample_grid, save_images
from vqvae2_fast.report.html import Section, write_report

__all__ = [
    "Section", "image_grid", "reconstruction_grid", "sample_grid", "save_images", "write_report",
]  # fmt: skip
