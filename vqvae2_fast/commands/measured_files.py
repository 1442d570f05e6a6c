"""What `evaluate` measures of real `.vq2` files: their size, and what they decode to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.codec import decode_codes, describe, encode_codes
from vqvae2_fast.data import in_order
from vqvae2_fast.data.images import spread_evenly
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.files.printable import printable
from vqvae2_fast.metrics.codes import prior_labels
from vqvae2_fast.metrics.reconstruction import PairMeasures, PairSums, Reconstruction
from vqvae2_fast.metrics.results import CompressedFiles
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.sampling import score_codes
from vqvae2_fast.sampling.pipeline import decoded

if TYPE_CHECKING:
    from pathlib import Path

    from vqvae2_fast.console import Progress
    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.metrics.perceptual import LPIPS
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["compressed_files", "files_of"]

_BATCH = 64


@torch.no_grad()
def compressed_files(
    pipeline: Pipeline,
    held_out: ImageSource,
    count: int,
    perceptual: LPIPS | None,
    progress: Progress,
) -> list[CompressedFiles]:
    """Files with one level, with two, to all of them, of `count` images spread over the set."""
    vqvae, priors = pipeline.networks()
    images = spread_evenly(held_out, count)
    names = level_names(len(priors))
    sums = [PairSums.of_size(vqvae.config.image_size, perceptual) for _ in priors]
    promised, written, files = ([0.0] * len(priors) for _ in range(3))
    with progress.task("compress held out", len(images)) as task:
        for batch, labels in in_order(images, _BATCH):
            codes, classes = vqvae.encode(batch), pipeline.num_classes
            told = labels.where(labels >= 0, classes) if classes else None
            for level, prior in enumerate(priors):
                log_prob = score_codes(
                    prior, codes[level], codes[:level], prior_labels(prior, labels)
                )
                promised[level] -= float(log_prob.sum(dtype=torch.float64)) / math.log(2)
                data = encode_codes(pipeline, codes, labels=told, levels=level + 1)
                written[level] += sum(describe(data).payload_bits)
                files[level] += 8 * len(data)
                sums[level].add(batch, decoded(pipeline, decode_codes(pipeline, data)))
            task.advance(len(batch))
    return [
        CompressedFiles(
            names[: level + 1],
            len(images),
            sum(promised[: level + 1]) / len(images),
            written[level] / len(images),
            files[level] / len(images),
            sums[level].result(),
        )
        for level in range(len(priors))
    ]


def files_of(folder: Path) -> list[CompressedFiles]:
    """What an earlier evaluation found of its files.

    Raises:
        ValueError: No such evaluation, or one that measured none.
    """
    path = folder / "metrics.json"
    found = []
    try:
        for own in read_object(path)["compressed"]:
            values = {**own, "levels": tuple(own["levels"])}
            kind = PairMeasures if "ssim" in own["measured"] else Reconstruction
            values["measured"] = kind(**own["measured"])
            found.append(CompressedFiles(**values))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"--beside: expected an evaluation with compressed files at {printable(path)}; repeat "
            "it with --compressed-images."
        ) from error
    return found
