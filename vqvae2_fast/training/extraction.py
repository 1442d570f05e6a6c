"""Between the stages: a trained VQ-VAE encodes images into a store of code maps.

The codes of a store depend only on the model, the images and the variants, however often the
writing was interrupted; how they are cut into shards also depends on the number of processes.
Therefore images are always encoded in the same batches (sums in another
order can move a vector to another code), and a shard ends after a number of records, never after a
time.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.console.progress import Progress
from vqvae2_fast.data import CodeStore, WriteProgress, augment, fingerprint, in_order, write_codes
from vqvae2_fast.data.augment import flips, recoloured, zoomed
from vqvae2_fast.data.code_format import MANIFEST, CodeLayout, read_manifest
from vqvae2_fast.data.code_writer import share
from vqvae2_fast.data.words import keep_words, words_of_parts
from vqvae2_fast.files.durable import locked, replace_file
from vqvae2_fast.files.json_file import damaged, json_field, read_object
from vqvae2_fast.files.kinds import (
    BOOLEAN,
    TEXT,
    check_field,
    check_fields,
    integer,
    list_of,
    number,
)
from vqvae2_fast.files.mapped import check_utf8
from vqvae2_fast.models.weights_hash import codes_hash
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.sampling.labels import class_numbers
from vqvae2_fast.training.images import check_images

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["SHARD_RECORDS", "Variants", "extract_codes", "missing_records", "variants_of"]

SHARD_RECORDS = 4096
# Images that are encoded together, and their pixels: a batch of 128 images of 1024x1024 would take
# 1.6 GB alone. The size follows from the model, so its images are always in the same batches.
_BATCH, _BATCH_PIXELS = 128, 128 * 256**2
_SETTINGS = "extraction.json"


@dataclass(frozen=True)
class Variants:
    """How often each image is encoded, and how it is changed before.

    A store's records are ordered by variant: all images as they are; with `flip`, all of them
    mirrored; then `copies` times all of them with random changes, which are a function of (seed,
    copy, image). With more records, priors of small sets overfit later.
    """

    flip: bool = False
    """Also encode each image mirrored left to right, and mirror half of the copies."""
    unflipped: tuple[str, ...] = ()
    """With flip: classes, or groups of classes, that are not mirrored, such as shoes that all face
    left. Their images are encoded twice as they are, which keeps the classes' proportions."""
    copies: int = 0
    """Number of randomly shifted copies of each image to encode as well."""
    shift: int = 2
    """Pixels that a copy is shifted by at most, in each direction; the border is repeated."""
    zoom: float = 0.0
    """A copy is enlarged or reduced by a factor of at most e^this."""
    colour: float = 0.0
    """Each channel of a copy is raised to a power between e^-this and e^this."""
    seed: int = 0
    """Seed of the copies' random changes."""

    def __post_init__(self) -> None:
        count, strength = integer(0), number(0)
        check_fields(self, copies=count, shift=count, zoom=strength, colour=strength, seed=count)
        for name in ("shift", "zoom", "colour", "seed"):
            value = getattr(self, name)
            if not self.copies and value != getattr(Variants, name):
                raise ValueError(
                    f"{name}={value} needs copies=1 or more; without them no image is "
                    "changed by it."
                )
        if self.unflipped and not self.flip:
            raise ValueError(
                f"unflipped={', '.join(self.unflipped)} needs flip; without it no image "
                "is mirrored."
            )

    def check_shift(self, image_size: Sequence[int]) -> None:
        """Raises ValueError if copies are shifted by as much as the images' height or width."""
        if self.copies and self.shift >= min(image_size):
            raise ValueError(
                f"shift must be below {min(image_size)}, the shorter side of the images, "
                f"got {self.shift}."
            )

    @property
    def count(self) -> int:
        """Records per image."""
        return 1 + self.flip + self.copies

    def settings(self) -> dict[str, Any]:
        """The fields that the records depend on, ready for JSON."""
        names = ["flip", "copies"] + ["shift", "seed", "zoom", "colour"] * bool(self.copies)
        return {name: getattr(self, name) for name in names} | {"unflipped": list(self.unflipped)}

    def labels_unflipped(self, class_names: Sequence[str]) -> Tensor:
        """The labels of the classes that are not mirrored, int64; -1 for "none".

        Raises:
            ValueError: There is no such class.
        """
        count = len(class_names)
        try:
            numbers = [class_numbers(name, count, class_names) for name in self.unflipped]
        except ValueError as error:
            raise ValueError(f"unflipped: {error}") from error
        labels = torch.tensor(sum(numbers, []), dtype=torch.int64, device="cpu")
        return labels.masked_fill(labels == count, -1)

    def apply(
        self, images: Tensor, indices: Tensor, variant: int, unflipped: Tensor | None = None
    ) -> Tensor:
        """Variant 0 to count - 1 of images `[B, C, H, W]` with these numbers in their set.

        Args:
            unflipped: Which of them are not mirrored, bool `[B]`; by default none.
        """
        copy = variant - self.flip
        if copy > 0:
            if self.zoom:
                images = zoomed(images, indices, self.zoom, seed=self.seed, epoch=copy)
            if self.colour:
                images = recoloured(images, indices, self.colour, seed=self.seed, epoch=copy)
            images = augment(images, indices, seed=self.seed, epoch=copy, crop_padding=self.shift)
        if not variant or not self.flip:
            return images
        mirrored = flips(indices, seed=self.seed, epoch=copy) if copy else indices >= 0
        if unflipped is not None:
            mirrored = mirrored & ~unflipped
        return torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(-1), images)


_AS_THEY_ARE = Variants()


def extract_codes(
    model: VQVAE2,
    images: ImageSource,
    path: str | os.PathLike[str],
    *,
    variants: Variants = _AS_THEY_ARE,
    words: Sequence[str] = (),
    rank: int = 0,
    world_size: int = 1,
    shard_records: int = SHARD_RECORDS,
    workers: int = 0,
    progress: Progress | None = None,
    name: str = "extract",
) -> CodeStore:
    """Encode a set of images into the code store `path`, or continue one that was interrupted.

    Each of `world_size` processes calls this with its rank; the store is complete when all have
    returned. A few batches of maps are in memory at a time.

    Args:
        words: Parts of the images' `attributes`, such as "glasses", whose values are kept as words
            for the priors, see data/words.py.
        shard_records: Records that are saved together: an interruption costs fewer than these.
        workers: Processes that decode images; see `batches`.

    Returns:
        The store as it is when this process has done its share.

    Raises:
        ValueError: Images of another size or channels than the model's; `path` holds a store of
            another model, set, variants or words; copies that are shifted by as much as their size;
            words of images without attributes, or of parts that none has; shard_records is not
            positive, or workers negative; a path that is not UTF-8.
        OSError: The disk is full or fails; what was saved before stays.
    """
    check_field("shard_records", shard_records, integer(1))
    check_field("workers", workers, integer(0))
    check_images(model, images, "images")
    variants.check_shift(images.image_shape[1:])
    folder, config = Path(path), model.config
    check_utf8(folder)
    layout = CodeLayout(config.num_embeddings, config.level_sizes)
    unflipped = variants.labels_unflipped(images.class_names)
    records = variants.count * len(images)
    told = None
    if words:
        attributes = getattr(images, "attributes", None)
        if attributes is None:
            raise ValueError(
                f"words: expected images with attributes, such as avatars, got a "
                f"{type(images).__name__}, which has none; leave words out."
            )
        told = words_of_parts(attributes, words)
    _keep_settings(folder, {**variants.settings(), "images": fingerprint(images)})
    if told is not None:
        keep_words(folder, told)
    start, stop = share(records, rank, world_size)
    missing = sum(last - first for first, last in missing_records(folder, stop, start))
    done = stop - start - missing
    with (progress or Progress(quiet=True)).task(name, stop - start, done) as task:

        def report(now: WriteProgress) -> None:
            task.update(now.done, f"{now.records_per_second:.0f} images/s")

        write_codes(
            folder,
            lambda first, last: _encoded(model, images, variants, unflipped, first, last, workers),
            records,
            config.num_embeddings,
            config.level_sizes,
            class_names=images.class_names,
            checkpoint_hash=codes_hash(model),
            rank=rank,
            world_size=world_size,
            shard_bytes=shard_records * layout.record_bytes,
            shard_seconds=math.inf,
            progress=report,
        )
        task.update(stop - start)
    return CodeStore(folder)


def missing_records(path: Path, stop: int, start: int = 0) -> list[tuple[int, int]]:
    """Ranges (first, stop) of records in [start, stop) that the store `path`, if any, lacks."""
    if not (path / MANIFEST).exists():
        return [(start, stop)]
    return read_manifest(path).missing(start, stop)


def variants_of(codes: CodeStore) -> Tensor:
    """How each record's image was changed, int64 `[N]`: 0 for not at all, then the kinds that the
    store has: mirrored, and changed at random. All copies are of one kind. Images that were not to
    be mirrored have 0 twice.

    Raises:
        ValueError: The store holds images as they are only, or was not extracted; or the file that
            says how it was is damaged.
    """
    path = codes.folder / _SETTINGS
    made = _read_variants(path)
    if made.count == 1:
        raise ValueError(
            f"variants: expected codes of images and of changed ones, and {codes.folder} has none "
            "of changed ones; make them with `vqvae2-fast extract --flip` or `--copies`."
        )
    images = (codes.manifest.source_records or 0) // made.count
    if images * made.count != codes.manifest.source_records:
        raise ValueError(
            f"variants: expected {made.count} times as many records as images, as {path} says, and "
            f"the set of {codes.folder} has {codes.manifest.source_records}; extract it again."
        )
    kinds = (codes.positions // max(images, 1)).clamp(max=1 + made.flip)
    if made.flip:
        try:
            unflipped = made.labels_unflipped(codes.class_names)
        except ValueError as error:
            raise damaged(path, str(error)[:-1]) from error
        kinds[(kinds == 1) & torch.isin(codes.labels, unflipped)] = 0
    return kinds


def _read_variants(path: Path) -> Variants:
    """What a store's settings say of how images were changed; nothing if there are none."""
    try:
        found = read_object(path)
    except FileNotFoundError:
        return Variants()
    found = {"flip": False, "copies": 0, "unflipped": [], **found}
    flip = json_field(found, "flip", BOOLEAN, path)
    copies = json_field(found, "copies", integer(0), path)
    unflipped = json_field(found, "unflipped", list_of(TEXT), path)
    if unflipped and not flip:
        raise damaged(path, "unflipped needs flip")
    return Variants(flip=flip, unflipped=tuple(unflipped), copies=copies)


@torch.no_grad()
def _encoded(
    model: VQVAE2,
    images: ImageSource,
    variants: Variants,
    unflipped: Tensor,
    first: int,
    stop: int,
    workers: int,
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Codes and labels of records first to stop - 1, from whole batches of the set.

    Args:
        unflipped: Labels of images that are not mirrored.
    """
    device = device_of(model)
    count = len(images)
    size = max(1, min(_BATCH, _BATCH_PIXELS // math.prod(model.config.image_size)))
    for variant in range(first // count, -(-stop // count)):
        low, high = max(first - variant * count, 0), min(stop - variant * count, count)
        at = low - low % size
        end = min(-(-high // size) * size, count)
        for batch, labels in in_order(images, size, num_workers=workers, start=at, stop=end):
            batch = variants.apply(
                batch,
                torch.arange(at, at + len(batch), device="cpu"),
                variant,
                torch.isin(labels.cpu(), unflipped),
            )
            maps = model.encode(batch.to(device).contiguous(memory_format=torch.channels_last))
            wanted = slice(max(low - at, 0), high - at)
            yield [codes[wanted].cpu() for codes in maps], labels[wanted].cpu()
            at += len(batch)


def _keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes, or compares with those there, the facts about records that the manifest lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _SETTINGS
    with locked(folder):
        if not path.exists():
            if (folder / MANIFEST).exists():
                raise ValueError(
                    f"{folder} holds codes that were not extracted; name another folder."
                )
            replace_file(path, (json.dumps(settings, indent=1) + "\n").encode())
            return
        found = read_object(path)
    # Older stores do not name these.
    found = {"zoom": 0.0, "colour": 0.0, "unflipped": [], **found}
    for name, value in settings.items():
        if found.get(name) != value:
            what = "other images" if name == "images" else f"{name} {found.get(name)}, not {value}"
            raise ValueError(
                f"{folder} was begun with {what}. Continue it with the same "
                "images and options, or name another folder."
            )
