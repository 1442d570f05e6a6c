"""Code maps of all levels as `.vq2` bytes, and back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqvae2_fast.codec.bitstream import (
    NO_LABEL,
    Header,
    Segment,
    UnfitFileError,
    read_segments,
    write_segment,
)
from vqvae2_fast.codec.engine import check_engine, decode_maps, encode_maps
from vqvae2_fast.models.code_checks import check_labels, check_maps, is_list
from vqvae2_fast.models.weights_hash import weights_hash
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.ops._checks import checked_integer
from vqvae2_fast.sampling.engines.cpu import packed_plan, why_not_cpu
from vqvae2_fast.sampling.kept import WeightsChangedError, made_of, made_together
from vqvae2_fast.sampling.labels import label_tensor
from vqvae2_fast.sampling.pipeline import check_is_pipeline, sample_levels
from vqvae2_fast.sampling.prior import from_plan, interface_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vqvae2_fast.sampling.engines.cpu import CpuPlan
    from vqvae2_fast.sampling.labels import Labels
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["decode_codes", "decode_stream", "encode_codes", "encode_stream", "pipeline_hash"]

MAX_LABEL = 2**15 - 1


@dataclass(frozen=True)
class Coder:
    """A pipeline as it was when the coder was made: what becomes of its weights does not count.

    Args:
        plans: Of the priors that engine `cpu` can draw from.
        hash: 8 bytes that stand for all weights and settings.
    """

    pipeline: Pipeline
    plans: tuple[CpuPlan | None, ...]
    hash: bytes

    @classmethod
    def of(cls, pipeline: Pipeline) -> Coder:
        plans, hashed = zip(*map(_packed_and_hashed, pipeline.priors), strict=True)
        coder = cls(pipeline, plans, _joined(pipeline, hashed))
        if pipeline_hash(pipeline) != coder.hash:  # one model was read before a change, one after
            raise WeightsChangedError
        return coder

    def plan(self, level: int, engine: str = "cpu") -> CpuPlan:
        """Raises as `check_engine`, or WeightsChangedError if the prior had no plan."""
        check_engine(self.pipeline.priors[level], engine)
        plan = self.plans[level]
        if plan is None:
            raise WeightsChangedError
        return plan


def _packed_and_hashed(prior: nn.Module) -> tuple[CpuPlan | None, str]:
    interface = interface_of(prior)
    if interface.why_no_plan or why_not_cpu(device_of(prior), next(prior.parameters()).dtype):
        return None, _weights_hash(prior)

    # The plan is what a draw by `cpu` keeps, under the same name.
    plan = from_plan(lambda plan, _: packed_plan(plan))
    made = made_together(prior, {"cpu": plan, "hash": weights_hash})
    return made["cpu"], made["hash"]


def pipeline_hash(pipeline: Pipeline) -> bytes:
    """8 bytes that stand for all weights and settings of a pipeline."""
    return _joined(pipeline, map(_weights_hash, pipeline.priors))


def _joined(pipeline: Pipeline, hashes: Iterable[str]) -> bytes:
    lines = [f"{found} {_settings(p)}" for p, found in zip(pipeline.priors, hashes, strict=True)]
    if isinstance(pipeline.vqvae, nn.Module):
        lines.insert(0, f"{_weights_hash(pipeline.vqvae)} {_settings(pipeline.vqvae)}")
    return hashlib.sha256("\n".join(lines).encode()).digest()[:8]


def _weights_hash(model: nn.Module) -> str:
    return made_of(model, "hash", weights_hash)


def _settings(model: nn.Module) -> str:
    """The settings of a model that differ from the defaults, so that a setting added by a later
    release does not change the hash of an old pipeline."""
    config = getattr(model, "config", None)
    if not is_dataclass(config):
        return ""
    values = [(f.name, getattr(config, f.name), f.default) for f in fields(config)]
    return repr([(name, value) for name, value, default in values if value != default])


def encode_codes(
    pipeline: Pipeline,
    codes: Sequence[Tensor],
    *,
    labels: Labels = None,
    engine: str = "cpu",
    levels: int | None = None,
    seed: int = 0,
) -> bytes:
    """Code maps as a `.vq2` file, at the bits that the priors give them.

    Args:
        codes: Per level int64 `[B, h, w]`, coarse to fine.
        labels: The classes for the priors, kept in the file: int64 `[B]`, or a list of numbers and
            names as in `sample_images`; without them "no class" if the priors have classes.
        engine: `cpu`, the only one whose probabilities are the same on every machine.
        levels: Write only this many levels, the coarsest first; the others are drawn when the file
            is decoded, with noise of `seed`.
        seed: 0 to 2³²−1.

    Raises:
        ValueError: Maps, labels or an engine that do not fit; the message names the argument.
        TypeError: A model in place of the pipeline, or codes that are no tensors.
        RuntimeError: No compiled module, or priors that are not float32 on the CPU.
    """
    check_is_pipeline(pipeline)
    num_levels = checked_levels(pipeline, levels, seed)
    _check_codes(pipeline, codes, num_levels)
    numbers = label_tensor(labels, pipeline.num_classes, pipeline.class_names)
    coder = Coder.of(pipeline)
    header = Header(coder.hash, len(codes[0]), num_levels, seed=seed)
    return write_segment(encoded(coder, header, codes, numbers, engine))


def decode_codes(
    pipeline: Pipeline, data: bytes | IO[bytes], *, max_images: int = 4096
) -> list[Tensor]:
    """The code maps of a `.vq2` file: per level int64 `[B, h, w]`, coarse to fine.

    Levels that the file leaves out, or lacks since it was cut after a coarser one, are drawn from
    the priors at temperature 1 with the seed in the file; `describe` says which levels it has.

    Args:
        max_images: Refuse a file of more images.

    Raises:
        ValueError: Another pipeline, a newer version, a damaged or truncated file, or one of more
            images.
        TypeError: A model in place of the pipeline, or data that is neither bytes nor a file of
            bytes.
        RuntimeError: As `encode_codes`.
    """
    parts = [maps for maps, _ in decode_stream(pipeline, data, max_images=max_images)]
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def encode_stream(
    pipeline: Pipeline,
    batches: Iterable[tuple[Sequence[Tensor], Labels]],
    *,
    engine: str = "cpu",
    levels: int | None = None,
    seed: int = 0,
) -> Iterator[bytes]:
    """`encode_codes` for any number of maps: one segment of the file per batch of (codes, labels).

    Write them one after the other. Only one batch is held in memory.
    """
    check_is_pipeline(pipeline)
    num_levels = checked_levels(pipeline, levels, seed)
    coder = Coder.of(pipeline)
    for codes, labels in batches:
        _check_codes(pipeline, codes, num_levels)
        numbers = label_tensor(labels, pipeline.num_classes, pipeline.class_names)
        header = Header(coder.hash, len(codes[0]), num_levels, seed=seed)
        yield write_segment(encoded(coder, header, codes, numbers, engine))


def decode_stream(
    pipeline: Pipeline,
    data: bytes | IO[bytes],
    *,
    max_images: int | None = None,
    batch_size: int = 64,
) -> Iterator[tuple[list[Tensor], Tensor | None]]:
    """The maps and labels of a `.vq2` file, at most `batch_size` images at a time; see
    `decode_codes`."""
    check_is_pipeline(pipeline)
    batch_size = checked_integer("batch_size", batch_size, 1, 2**32 - 1)
    coder, first = Coder.of(pipeline), 0
    for segment in read_segments(data, max_images=max_images):
        check_pipeline(segment.header, coder.hash)
        for part in parts_of(segment, batch_size):
            yield decoded_codes(coder, part, first)
            first += part.header.num_images


def encoded(
    coder: Coder,
    header: Header,
    codes: Sequence[Tensor],
    labels: Tensor | None,
    engine: str,
) -> Segment:
    """A segment of these maps."""
    pipeline, batch = coder.pipeline, len(codes[0])
    class_labels = _labels_or_no_class(pipeline, labels, batch)
    streams = []
    for level in range(header.num_levels):
        plan, maps = coder.plan(level, engine), list(codes[:level])
        interface = interface_of(pipeline.priors[level])
        check_maps(
            [*maps, codes[level]],
            (*interface.condition_sizes, interface.size),
            interface.num_embeddings,
            batch,
            "codes",
        )
        level_labels = class_labels if interface.num_classes else None
        streams.append(encode_maps(plan, codes[level], maps, level_labels))
    found = [] if labels is None else labels.tolist()
    if len(set(found)) == 1:
        return Segment(replace(header, label=found[0]), streams)
    return Segment(header, streams, found)


def decoded_codes(
    coder: Coder, segment: Segment, first_sample: int
) -> tuple[list[Tensor], Tensor | None]:
    """All levels' maps of a segment, and its labels."""
    pipeline, header, batch = coder.pipeline, segment.header, segment.header.num_images
    if len(segment.streams) > len(pipeline.priors):
        raise ValueError(
            f"the file has {len(segment.streams)} levels, the pipeline {len(pipeline.priors)}."
        )
    labels = None
    if segment.labels:
        labels = torch.tensor(segment.labels, device="cpu", dtype=torch.int64)
    elif header.label != NO_LABEL:
        labels = torch.full((batch,), header.label, device="cpu", dtype=torch.int64)
    class_labels = _labels_or_no_class(pipeline, labels, batch)
    maps: list[Tensor] = []
    for level, streams in enumerate(segment.streams):
        level_labels = class_labels if interface_of(pipeline.priors[level]).num_classes else None
        codes, finished = decode_maps(coder.plan(level), streams, maps, level_labels)
        if not all(finished):
            image = first_sample + finished.index(False)
            raise ValueError(
                f"the stream of level {level}, image {image} does not end where its "
                "encoder ended: the file is damaged."
            )
        maps.append(codes)
    if len(maps) < len(pipeline.priors):
        missing = len(pipeline.priors) - len(maps)
        drawn = sample_levels(
            pipeline,
            batch,
            labels=class_labels,
            seed=header.seed,
            first_sample=first_sample,
            known=[*maps, *[None] * missing],
        )
        if Coder.of(pipeline).hash != coder.hash:
            raise WeightsChangedError
        assert isinstance(drawn, list)
        maps = [codes for codes in drawn if isinstance(codes, Tensor)]
    return maps, labels


def check_pipeline(header: Header, expected: bytes) -> None:
    """Raises UnfitFileError unless the file was written with this pipeline."""
    if header.pipeline != expected:
        raise UnfitFileError(
            f"the file was encoded with pipeline {header.pipeline.hex()}, this is "
            f"{expected.hex()}.",
            "Load the one it was encoded with; `vqvae2-fast info FOLDER` shows this hash of a "
            "pipeline.",
        )


def parts_of(segment: Segment, size: int) -> Iterator[Segment]:
    """A segment as segments of at most `size` images."""
    for start in range(0, segment.header.num_images, size):
        part = slice(start, start + size)
        streams = [level[part] for level in segment.streams]
        yield Segment(
            replace(segment.header, num_images=len(streams[0])), streams, segment.labels[part]
        )


def _labels_or_no_class(pipeline: Pipeline, labels: Tensor | None, batch: int) -> Tensor | None:
    """Labels for the priors, "no class" if there are none."""
    num_classes = pipeline.num_classes
    if labels is None:
        return (
            torch.full((batch,), num_classes, device="cpu", dtype=torch.int64)
            if num_classes
            else None
        )
    if num_classes > MAX_LABEL:
        raise ValueError(
            f"expected at most {MAX_LABEL} classes, got {num_classes}; leave labels out."
        )
    check_labels(labels, num_classes, batch)
    return labels


def checked_levels(pipeline: Pipeline, levels: int | None, seed: int) -> int:
    """How many levels to write, with a seed for the others that the header has room for."""
    total = len(pipeline.priors)
    checked_integer("seed", seed, 0, 2**32 - 1)
    return total if levels is None else checked_integer("levels", levels, 1, total)


def _check_codes(pipeline: Pipeline, codes: Sequence[Tensor], levels: int) -> None:
    can_be_maps = is_list(codes) or isinstance(codes, Tensor)
    if not can_be_maps or not all(isinstance(maps, Tensor) for maps in codes):
        got = f"a {type(codes).__name__}"
        if can_be_maps:
            got += f" of {', '.join(sorted({type(maps).__name__ for maps in codes}))}"
        raise TypeError(
            "expected codes to be a list of tensors, int64 [B, h, w], one per level, "
            f"coarse to fine, got {got}. The encode of a VQVAE2 gives such a list."
        )
    if len(codes) > len(pipeline.priors):
        raise ValueError(
            f"expected codes to be at most {len(pipeline.priors)} maps, one per level of "
            f"the pipeline, got {len(codes)}: {[list(maps.shape) for maps in codes]}."
        )
    if len(codes) < levels or codes[0].ndim != 3 or not len(codes[0]):
        raise ValueError(
            f"expected codes to be {levels} maps int64 [B, h, w] with B >= 1, coarse to "
            f"fine, got {[list(maps.shape) for maps in codes]}."
        )
