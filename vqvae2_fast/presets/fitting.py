"""A preset for a set of images, by their size and number: what `vqvae2-fast train` takes."""

from __future__ import annotations

from dataclasses import replace

from vqvae2_fast.presets.photos import PHOTOS
from vqvae2_fast.presets.small import SMALL
from vqvae2_fast.training.extraction import Variants
from vqvae2_fast.training.preset import Preset

__all__ = ["fitting_preset"]

# Up to this side the strides of emoji32, 2 and 2, leave few enough codes to draw.
_SMALL_SIDE = 48
# Images below which altered copies keep the priors from overfitting, and how many there are with
# their copies; emoji32 has 2,819 images with 2 copies each.
_SMALL_SET, _WITH_COPIES, _MOST_COPIES = 5000, 9000, 8


def fitting_preset(
    image_shape: tuple[int, int, int], images: int, *, flip: bool = False
) -> tuple[str, Preset]:
    """The preset with whose models images of this shape are learnt, and its name.

    Args:
        image_shape: (C, H, W).
        images: How many there are to train on.
        flip: Whether they may be mirrored left to right.
    """
    channels, height, width = image_shape
    side = max(height, width)
    if side <= _SMALL_SIDE:
        name = "emoji32"
    else:
        name = next(f"photos{known}" for known in (64, 128, 256) if side <= known or known == 256)
    known = (SMALL | PHOTOS)[name]
    vqvae = replace(known.vqvae, image_size=(height, width), image_channels=channels)
    tops = vqvae.level_sizes
    priors = tuple(
        replace(prior, size=tops[level], condition_sizes=tops[:level], num_classes=0)
        for level, prior in enumerate(known.priors)
    )
    variants = Variants(flip=flip)
    if images < _SMALL_SET:
        copies = max(2, min(_MOST_COPIES, _WITH_COPIES // images - 1))
        variants = Variants(flip=flip, copies=copies, zoom=0.05, colour=0.15)
    training = replace(known.training, flip=flip, variants=variants, class_balance=0.5)
    return name, Preset(vqvae, priors, training)
