"""Holes in images, filled on their code maps: known codes are kept, the others are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.models.code_checks import check_pixels, is_list
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.contexts import evaluating
from vqvae2_fast.ops._checks import check_tensor, checked_integer, dtype_name, given
from vqvae2_fast.sampling.batches import draw_batch
from vqvae2_fast.sampling.labels import label_tensor
from vqvae2_fast.sampling.pipeline import num_levels_of
from vqvae2_fast.sampling.settings import level_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.sampling.labels import Labels
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["encoded", "fill", "masks_of_levels"]


def fill(
    pipeline: Pipeline,
    images: Tensor,
    mask: Tensor | Sequence[Tensor],
    *,
    candidates: int = 1,
    labels: Labels = None,
    seed: int = 0,
    first_sample: int = 0,
    progress: Callable[[int, int, int], None] | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """Fill holes in images: encode them, draw the codes of the holes, decode.

    The levels are filled coarse to fine, each map by the prior of its level given the coarser maps
    that are filled already. A prior draws in raster order, so a code that is drawn follows from the
    known codes above it and to its left, but not from those below. With several candidates, each
    map's holes are filled that many times, and one of these fillings is taken with probability ∝
    p(known codes after the first hole | filling): the more candidates, the better a filling also
    fits what is below. This is sampling-importance-resampling; it is exact in the limit.

    Args:
        images: Float `[B, C, H, W]` in [-1, 1], of the model's size. The codes beside a hole depend
            on the pixels in it, as far as the encoder sees; blank these if they must not count.
        mask: Where to draw, bool `[B, H, W]` or `[H, W]` of pixels: a code is drawn if its cell has
            a pixel of the mask. Or a list of masks of codes, bool `[B, h, w]` or `[h, w]`, one per
            level, coarse to fine.
        candidates: Fillings of each map, at least 1; 1 draws on from what comes before.
        labels: As in `sample_images`.
        seed, first_sample: Row b is sample n = `first_sample + b`, filled the same in any batch.
            Its candidate c of m is drawn with the noise of sample n·m + c.
        progress: Called with (level, rows done, rows of the maps of all batches of candidates).
        settings: Further fields of `DrawSettings`, each one value or one per level, coarse to fine.
            They change what is drawn; the candidates are weighed by the raw model.

    Returns:
        Images float `[B, C, H, W]` in [-1, 1], decoded as a whole. To keep the pixels around the
        holes as they were, take `torch.where(mask[:, None], filled, images)`. And the effective
        number of candidates (Σ w)² / Σ w², float64 `[B, L]` per level: near 1, one candidate had
        nearly all the weight and more of them would help.

    Raises:
        ValueError: A size, range or value that does not fit, such as images that are not finite or
            have values outside [-2, 2]; the message names the argument.
        TypeError: Images or a mask that are no tensors, a mask that is not bool, images that are
            not floating point, or a pipeline whose first model is not a `VQVAE2`.
    """
    num_levels = num_levels_of(pipeline)
    if not isinstance(pipeline.vqvae, VQVAE2):
        raise TypeError(
            f"expected a pipeline with a VQVAE2, got a {type(pipeline.vqvae).__name__}; "
            "sample_levels takes the codes of any model as known."
        )
    config = pipeline.vqvae.config
    shape = (config.image_channels, *config.image_size)
    check_tensor("images", images)
    if images.ndim != 4 or not len(images) or images.shape[1:] != shape:
        raise ValueError(
            f"expected images [B, C, H, W] = [B, {', '.join(map(str, shape))}] with B >= 1, "
            f"got {list(images.shape)}; scale them to the model's size."
        )
    if not images.is_floating_point():
        raise TypeError(f"expected images of a floating dtype, got {dtype_name(images.dtype)}.")
    check_pixels(images)
    first_sample = checked_integer("first_sample", first_sample, 0, 2**32 - len(images))
    masks = masks_of_levels(config, mask, len(images))
    numbers = label_tensor(labels, pipeline.num_classes, pipeline.class_names)
    known = [
        codes.masked_fill(level.to(codes.device), -1)
        for codes, level in zip(encoded(pipeline.vqvae, images), masks, strict=True)
    ]
    filled = draw_batch(
        pipeline,
        range(first_sample, first_sample + len(images)),
        level_settings(num_levels, seed=seed, **settings),
        labels=numbers,
        known=known,
        candidates=candidates,
        progress=progress,
    )
    return filled.images, torch.tensor(filled.effective, dtype=torch.float64, device="cpu")


def encoded(vqvae: VQVAE2, images: Tensor) -> list[Tensor]:
    """Code maps `[B, h, w]`, coarse to fine, of images that are encoded one at a time.

    So the codes of an image are the same in any batch: networks round differently in batches of
    other sizes.
    """
    like = next(vqvae.parameters())
    with torch.no_grad(), evaluating(vqvae):
        maps = [vqvae.encode(image[None].to(like)) for image in images]
    return [torch.cat(level) for level in zip(*maps, strict=True)]


def masks_of_levels(
    config: VQVAE2Config, mask: Tensor | Sequence[Tensor], batch_size: int
) -> list[Tensor]:
    """Where the codes of each level are drawn, bool `[B, h, w]`, coarse to fine.

    Args:
        mask: As in `fill`.

    Raises:
        ValueError: A mask that does not fit the maps or the images, or another number of them.
        TypeError: A mask that is not bool, or neither a tensor nor a list.
    """
    sizes = config.level_sizes
    if isinstance(mask, Tensor):
        pixels = _checked("mask", mask, batch_size, config.image_size)[:, None].float()
        return [F.adaptive_max_pool2d(pixels, size)[:, 0] > 0 for size in sizes]
    expected = (
        f"expected mask to be bool [B, H, W] of pixels or a list of {len(sizes)} masks of "
        "codes, one per level coarse to fine, got"
    )
    if not is_list(mask):
        raise TypeError(f"{expected} {given('mask', mask)}.")
    if len(mask) != len(sizes):
        raise ValueError(f"{expected} a list of {len(mask)}.")
    return [
        _checked(f"mask[{level}]", codes, batch_size, size)
        for level, (codes, size) in enumerate(zip(mask, sizes, strict=True))
    ]


def _checked(name: str, mask: Tensor, batch_size: int, size: tuple[int, int]) -> Tensor:
    """A mask `[B, h, w]`; one `[h, w]` stands for all images."""
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"expected {name} bool, True where to draw, got {dtype_name(mask.dtype)}.")
    shape = (batch_size, *size)
    if tuple(mask.shape) not in (shape, size):
        raise ValueError(f"expected {name} {list(shape)} or {list(size)}, got {list(mask.shape)}.")
    return mask.expand(shape)
