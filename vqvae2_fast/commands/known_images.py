"""The images that `sample --known` completes: read as its options say."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vqvae2_fast.data import ImageFolder
from vqvae2_fast.data.pixels import decode_image
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import open_untrusted
from vqvae2_fast.sampling.known import lower_rows, open_known, painted

if TYPE_CHECKING:
    from vqvae2_fast.commands.sample import Sample
    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.sampling import Pipeline
    from vqvae2_fast.sampling.known import Known

__all__ = ["known_images"]


def known_images(asked: Sample, pipeline: Pipeline, *, warn: bool = True) -> Known | None:
    """The images to complete, or None without --known.

    Args:
        warn: Whether to tell that a model of grey images takes the colour of these.

    Raises:
        ValueError: Options that need --known or exclude each other, or as `open_known`.
    """
    where = {"--keep": asked.keep, "--mask": asked.mask, "--candidates": asked.candidates}
    given = [flag for flag, value in where.items() if value is not None]
    skip = {"--skip-corrupt": asked.skip_corrupt, "--skip-small": asked.skip_small}
    given += [flag for flag, value in skip.items() if value]
    if asked.known is None:
        if given:
            raise ValueError(f"{given[0]}: expected images to complete with it, by --known.")
        return None
    if asked.mask is None and asked.candidates is not None:
        raise ValueError(
            "--candidates: expected a --mask with it: no known codes follow where only the "
            "upper rows are kept."
        )
    if asked.mask is not None and asked.keep is not None:
        raise ValueError("--keep: expected either --keep or --mask, got both.")
    config = pipeline.networks()[0].config
    if asked.mask is None:
        hole = lower_rows(0.5 if asked.keep is None else asked.keep, config)
    else:
        hole = painted(asked.mask, 1 if asked.candidates is None else asked.candidates, config)
    known = open_known(
        asked.known,
        hole,
        pipeline,
        skip_corrupt=asked.skip_corrupt,
        skip_small=asked.skip_small,
    )
    if warn and config.image_channels == 1:
        _warn_of_colour(known, Path(asked.known), config)
    return known


def _warn_of_colour(known: Known, path: Path, config: VQVAE2Config) -> None:
    """Name the first image whose colour a model of grey images does not keep."""
    files, inside = [path], None
    if isinstance(known.dataset, ImageFolder):
        files, inside = [path / name for name in known.dataset.names], path
    elif not path.is_file():  # a store of codes
        return
    for file in files:
        with open_untrusted(file, inside=inside) as opened:
            # By its pixels: grey photographs are often written with three channels.
            shape = (3, *config.image_size)
            pixels = decode_image(opened, f"known: {printable(file)}", shape, convert_channels=True)
        if (pixels != pixels[:1]).any():
            others = ", as is that of any such image after it" if len(files) > 1 else ""
            warnings.warn(
                f"{printable(file)} has colour, and the model's images are grey: its colour is "
                f"lost{others}.",
                stacklevel=2,
            )
            return
