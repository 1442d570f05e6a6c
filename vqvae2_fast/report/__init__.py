"""Pictures, figures and pages of results, whole on the disk or not at all.

`grids.py` lays out images, `samples.py` those of a folder of samples, `curves.py` and
`trade_off.py` draw figures, `evaluation.py` puts an evaluation into words and tables, and `html.py`
writes a report as one file.
"""

from vqvae2_fast.report.grids import (
    code_grid,
    image_grid,
    picture_of_reconstructions,
    reconstruction_grid,
    sample_grid,
)
from vqvae2_fast.report.html import Section, write_report

__all__ = [
    "Section",
    "code_grid",
    "image_grid",
    "picture_of_reconstructions",
    "reconstruction_grid",
    "sample_grid",
    "write_report",
]
