"""All measures of a pipeline on images that it was not trained on, in one pass over them.

Images are read, encoded, decoded and scored batch by batch, and only sums are kept: memory does not
grow with the set.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.console import Progress
from vqvae2_fast.data import in_order, to_uint8
from vqvae2_fast.data.image_cache import store_images
from vqvae2_fast.data.images import check_image_source, evenly
from vqvae2_fast.files.kinds import check_field, integer, one_of
from vqvae2_fast.metrics.codecs import CODECS, CodecCurve, codec_at_bits
from vqvae2_fast.metrics.codes import (
    CodebookUse,
    Likelihood,
    code_counts,
    code_nats,
    entropy_of_counts,
)
from vqvae2_fast.metrics.estimates import ALONE, terms_of_all
from vqvae2_fast.metrics.reconstruction import PairMeasures, PairSums
from vqvae2_fast.metrics.results import CodecQuality, Evaluation, LevelCost
from vqvae2_fast.models.code_checks import check_priors_fit
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.modules.contexts import device_of, evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.data.image_cache import StoredImages
    from vqvae2_fast.metrics.codecs import CodecPoint
    from vqvae2_fast.metrics.estimates import Processes
    from vqvae2_fast.metrics.perceptual import LPIPS
    from vqvae2_fast.metrics.reconstruction import Reconstruction
    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.models.prior import Prior
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["evaluate_pipeline", "evaluation_batch", "store_reconstructions"]

# 128 images of 64x64, or 8 of 256x256. A small pipeline of the larger size peaked at 1,007 MiB with
# 24 and with 300 images. Batches of 128 with the whole set in memory took 9,217 MiB, and more time.
_BATCH_PIXELS, _BATCH = 1 << 19, 128


def evaluate_pipeline(
    vqvae: VQVAE2,
    priors: Sequence[Prior],
    held_out: ImageSource,
    *,
    train_set: ImageSource | None = None,
    perceptual: LPIPS | None = None,
    codec_images: int = 1000,
    codecs: Sequence[str] = tuple(CODECS),
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Evaluation:
    """Reconstruction, bits and use of codes on held-out images, next to those of `CODECS` that
    Pillow has.

    Args:
        vqvae, priors: One prior per level, coarse to fine.
        train_set: Images that they were trained on, for the overfitting gap.
        perceptual: LPIPS, if it is to be measured too.
        codec_images: At most this many images, spread evenly over the set, are given to the
            codecs: WebP has 21 qualities, each of which takes 1 ms for an image of 32x32 and 0.1 s
            for 256x256; AVIF has 11, which take 8 ms and 0.25 s. LPIPS is measured of each too.
        codecs: Names of `CODECS`; one that Pillow lacks is left out.
        processes: Those that call this with the same arguments, each to take its share of the
            batches. All get the result, which does not depend on their number.

    Raises:
        ValueError: No images, LPIPS of images that are too small for it, priors that are not those
            of the levels, or an unknown codec.
        TypeError: What is no set of images, such as an array.
    """
    for name in codecs:
        check_field("codecs", name, one_of(CODECS))
    check_image_source("held_out", held_out)
    if train_set is not None:
        check_image_source("train_set", train_set)
    config = vqvae.config
    by_name = {f"priors[{level}]": prior.config for level, prior in enumerate(priors)}
    check_priors_fit(by_name, config.num_embeddings, config.level_sizes)
    progress = progress or Progress(quiet=True)
    check_field("codec_images", codec_images, integer(1))
    curves = {
        name: CodecCurve(CODECS[name], perceptual=perceptual)
        for name in codecs
        if CODECS[name].available()
    }
    encoded = evenly(len(held_out), codec_images)

    def add_to_curves(first: int, images: Tensor) -> None:
        rows = encoded[(encoded >= first) & (encoded < first + len(images))] - first
        for curve in curves.values():
            curve.add(to_uint8(images[rows]).to(device_of(vqvae)))

    found = _one_pass(
        vqvae,
        priors,
        held_out,
        "evaluate held out",
        progress,
        processes,
        perceptual,
        add_to_curves,
    )
    trained = None
    if train_set is not None:
        trained = _one_pass(vqvae, priors, train_set, "evaluate train", progress, processes)
    levels = _levels(vqvae.config, found, trained)
    bits = sum(level.bits_per_image for level in levels.values())
    points = {name: curve.points(processes) for name, curve in curves.items()}
    return Evaluation(
        images=len(held_out),
        reconstruction=found.reconstruction,
        levels=levels,
        bits_per_image=bits,
        marginal_bits_per_image=sum(level.marginal_bits_per_image for level in levels.values()),
        bits_per_dim=bits / math.prod(held_out.image_shape),
        codecs={name: CodecQuality(bits, _at_bits(curve, bits)) for name, curve in points.items()},
        curves=points,
        train_images=None if train_set is None else len(train_set),
        train_reconstruction=None if trained is None else trained.reconstruction,
    )


def evaluation_batch(image_size: tuple[int, int]) -> int:
    """Images of a batch: fewer of large ones, so that memory does not grow with their size."""
    return min(_BATCH, max(1, _BATCH_PIXELS // math.prod(image_size)))


@torch.no_grad()
def store_reconstructions(
    vqvae: VQVAE2, images: ImageSource, path: Path, progress: Progress, name: str
) -> StoredImages:
    """Write the reconstructions of a set to the file `path`, and give them as a set."""
    device = device_of(vqvae)
    with evaluating(vqvae), progress.task(f"reconstruct {name}", len(images)) as task:

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch, labels in in_order(images, evaluation_batch(vqvae.config.image_size)):
                yield vqvae.decode(vqvae.encode(batch.to(device))), labels
                task.advance(len(batch))

        return store_images(path, len(images), batches(), images.class_names)


def _at_bits(curve: Sequence[CodecPoint], bits: float) -> dict[str, float | None]:
    """The drawn measures of a codec at a rate that are known there, and its PSNR or None."""
    drawn = [own.name for own in fields(PairMeasures) if own.metadata["drawn"]]
    found = {name: codec_at_bits(curve, bits, name) for name in drawn}
    return {name: value for name, value in found.items() if value is not None or name == "psnr"}


@dataclass(frozen=True)
class _Found:
    """What a pass over a set gives, the last two by level."""

    reconstruction: Reconstruction
    likelihoods: list[Likelihood]
    counts: list[Tensor]


@torch.no_grad()
def _one_pass(
    vqvae: VQVAE2,
    priors: Sequence[Prior],
    images: ImageSource,
    name: str,
    progress: Progress,
    processes: Processes,
    perceptual: LPIPS | None = None,
    also: Callable[[int, Tensor], None] = lambda first, batch: None,
) -> _Found:
    """Error, cost and histogram of the codes of a set, of which each process takes its batches.

    Args:
        also: Called with each batch and the number of its first image.
    """
    config, device = vqvae.config, device_of(vqvae)
    sums = PairSums.of_size(config.image_size, perceptual)
    nats: list[list[float]] = []  # of each batch, by level
    counts = [torch.zeros(config.num_embeddings, dtype=torch.int64, device="cpu") for _ in priors]
    size, rank, count = evaluation_batch(config.image_size), processes.rank, processes.count
    firsts = range(rank * size, len(images), count * size)
    own = in_order(images, size, rank=rank, world_size=count)
    with ExitStack() as held:
        for model in (vqvae, *priors):
            held.enter_context(evaluating(model))
        task = held.enter_context(progress.task(name, len(images)))
        for first, (batch, labels) in zip(firsts, own, strict=True):
            # As `extract_codes` encodes them: sums in another order can move a vector to another
            # code.
            seen = batch.to(device).contiguous(memory_format=torch.channels_last)
            maps = vqvae.encode(seen)
            sums.add(seen, vqvae.decode(maps))
            nats.append(
                [code_nats(prior, maps, labels, level) for level, prior in enumerate(priors)]
            )
            for level, histogram in enumerate(counts):
                histogram += code_counts(maps[level], config.num_embeddings)
            also(first, batch)
            # The processes advance together, within a batch.
            task.update(min(len(images), first + len(batch) + (count - 1 - rank) * size))
    reconstruction = sums.result(processes)  # refuses an empty set
    totals = map(math.fsum, zip(*terms_of_all(processes, nats), strict=True))
    likelihoods = [
        Likelihood.of_sum(total, len(images), math.prod(map_size))
        for total, map_size in zip(totals, config.level_sizes, strict=True)
    ]
    histograms = torch.tensor(
        processes.gathered([level.tolist() for level in counts]), device="cpu", dtype=torch.int64
    ).sum(0)
    return _Found(reconstruction, likelihoods, list(histograms))


def _levels(config: VQVAE2Config, found: _Found, trained: _Found | None) -> dict[str, LevelCost]:
    levels = {}
    for level, name in enumerate(level_names(config.num_levels)):
        use, own = CodebookUse.of_counts(found.counts[level]), found.likelihoods[level]
        marginal = entropy_of_counts(found.counts[level])
        codes = math.prod(config.level_sizes[level])
        levels[name] = LevelCost(
            codes=codes,
            codes_used=use.used,
            perplexity=use.perplexity,
            marginal_bits_per_code=marginal,
            marginal_bits_per_image=marginal * codes,
            **asdict(own),
        )
        if trained is not None:
            train = trained.likelihoods[level]
            levels[name] = replace(
                levels[name],
                train_nats_per_code=train.nats_per_code,
                train_bits_per_code=train.bits_per_code,
                overfitting_gap=own.nats_per_code - train.nats_per_code,
            )
    return levels
