"""`vqvae2-fast compress`: images, or a code store, as a file of codes under a pipeline's priors."""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro

from vqvae2_fast.codec import describe, encode_codes, encode_images
from vqvae2_fast.codec.bitstream import begins_as_compressed
from vqvae2_fast.codec.tiles import Tiling
from vqvae2_fast.commands.common import (
    Command,
    ModelOptions,
    Result,
    check_one_store,
    check_out_file,
)
from vqvae2_fast.console.words import counted
from vqvae2_fast.data import CodeStore, codes_in_order, in_order, to_float
from vqvae2_fast.data.code_format import MANIFEST
from vqvae2_fast.data.code_store import check_matches
from vqvae2_fast.data.folder import image_names, whole_images
from vqvae2_fast.data.groups import classes_of_prior, labels_of_prior
from vqvae2_fast.data.pixels import check_image
from vqvae2_fast.data.sources import DataOptions, is_source_name, open_images
from vqvae2_fast.files.durable import explained, renamed_into_place, sync_file, write_all
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import open_untrusted
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.weights_hash import check_codes_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["Compress"]

_EXPECTED = "compress: expected IMAGES to be an image, a folder of images, a code store"
_SEGMENT = 256  # images, or records of a store, that are encoded together
_PIXELS = 2**24  # pixels of images of one size, padded to tiles, that are encoded together


@dataclass(kw_only=True)
class Compress(Command):
    """Compress images to a file, with as many bits as a pipeline's priors give their codes.

    The codes are kept exactly, and any machine decodes what another has compressed. Information is
    lost by the VQ-VAE, and before it where the model's images cannot hold it: transparency becomes
    white, 16 bits become 8, and a model of grey images loses colour, of which a warning tells.
    """

    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """An image or a folder of images, each kept at its own size (images larger than the model's are
    cut into tiles); a code store; or a named source such as emoji or fashion."""
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    levels: str | None = None
    """Write only the levels down to this one, for example top; decompress draws the others."""
    skip_corrupt: bool = False
    """Leave out images of a folder that cannot be decoded, and name them."""
    seed: int = 0
    """With --levels: the noise that the other levels are drawn with."""
    out: Path = Path("images.vq2")
    """File to write."""

    def run(self) -> Result:
        self.check_one_process()
        device = self.prepare_on_cpu()
        check_one_store(Path(self.images))
        self._check_out()
        pipeline = self.model.open(device)
        names = level_names(len(pipeline.priors))
        if self.levels is not None and self.levels not in names:
            raise ValueError(f"--levels: expected one of {', '.join(names)}, got {self.levels!r}.")
        if self.seed and self.levels is None:
            raise ValueError(
                "--seed: expected --levels with it, as the noise is for the levels that are left "
                f"out, got only --seed {self.seed}."
            )
        levels = None if self.levels is None else names.index(self.levels) + 1
        begun = time.monotonic()
        pixels = done = 0
        named = is_source_name(self.images) or not Path(self.images).exists()
        source = self._named_source(pipeline) if named else None
        skipped: list[str] | None = [] if self.skip_corrupt else None
        segments = self._segments(pipeline, source, levels, skipped)
        with self.progress().task("compress", self._count(source)) as task:
            # Images that cannot be read are refused here, before there is a folder.
            first = list(islice(segments, 1))
            with ExitStack() as stack:
                with self._explained():
                    self.out.parent.mkdir(parents=True, exist_ok=True)
                    part = stack.enter_context(renamed_into_place(self.out))
                    file = stack.enter_context(part.open("wb", buffering=0))
                for data, size, count in chain(first, segments):
                    with self._explained():
                        write_all(file, data)
                    pixels += size
                    done += count
                    task.update(done + len(skipped or ()))
                task.update(done + len(skipped or ()))  # also those after the last segment
                with self._explained():  # some file systems are full only now
                    sync_file(file)
        with self.out.open("rb") as written:
            found = describe(written)
        total = self.out.stat().st_size
        bits = dict(zip(names, found.payload_bits, strict=False))
        values: dict[str, Any] = {
            "out": str(self.out),
            "images": found.images,
            "bytes": total,
            "bits_per_level": bits,
            "overhead_bytes": found.overhead_bytes,
            "bits_per_image": found.bits_per_image,
            "bits_per_pixel": 8 * total / pixels if pixels else None,
            "seconds": round(time.monotonic() - begun, 3),
        }
        shown = ", ".join(f"{name} {size / found.images:,.0f}" for name, size in bits.items())
        drawn = names[len(bits) :]
        rate = f", {values['bits_per_pixel']:.3f} bits per pixel" if pixels else ""
        lines = [
            f"{counted(found.images, 'image or tile', 'images or tiles')} in {total:,} bytes: "
            f"{found.bits_per_image:,.0f} bits each ({shown} bits of codes){rate}",
            f"file: {self.out}",
        ]
        if skipped:
            values["skipped"] = skipped
            lines.insert(1, f"left out, since they are corrupt: {short(', '.join(skipped))}")
        if drawn:
            lines.insert(1, f"left out, to be drawn by decompress: {', '.join(drawn)}")
        return Result(values, lines)

    def _explained(self) -> AbstractContextManager[None]:
        unchanged = "What was there before, if anything, is unchanged"
        return explained(
            f"cannot write {self.out}", unchanged, then="start again, or name another folder"
        )

    def _check_out(self) -> None:
        """Raises ValueError if --out is a folder, lies in one that cannot be written to, is one of
        the files that are read, or a file that no compress has written."""
        check_out_file(self.out, "images.vq2")
        if self.out.exists() and any(map(self.out.samefile, self._inputs())):
            raise ValueError(
                f"--out: {self.out} is one of the files to compress, which would be replaced. Name "
                "another file."
            )
        if self.out.is_file() and self.out.stat().st_size and not begins_as_compressed(self.out):
            raise ValueError(
                f"--out: {self.out} exists and is no .vq2 file; only such a file, or an empty one, "
                "is replaced. Name another file, or remove this one."
            )

    def _inputs(self) -> Iterator[Path]:
        """The files of an image, a folder of images or a code store."""
        path = Path(self.images)
        if (path / MANIFEST).is_file():
            yield path / MANIFEST
            yield from (path / shard.name for shard in CodeStore(path).manifest.shards)
        elif path.is_dir():
            yield from (path / name for name in image_names(path))
        elif path.exists():
            yield path

    def _named_source(self, pipeline: Pipeline) -> ImageSource:
        """The images of emoji, fashion and so on."""
        config = pipeline.networks()[0].config
        return open_images(
            DataOptions(data=self.images),
            "all",
            config.image_channels,
            config.image_size,
            expected=_EXPECTED,
        )

    def _count(self, source: ImageSource | None) -> int:
        """The number of images, of a named source or of a path, or of records."""
        if source is not None:
            return len(source)
        path = Path(self.images)
        if (path / MANIFEST).is_file():
            return len(CodeStore(path))
        return len(image_names(path))

    def _segments(
        self,
        pipeline: Pipeline,
        source: ImageSource | None,
        levels: int | None,
        skipped: list[str] | None,
    ) -> Iterator[tuple[bytes, int, int]]:
        """Bytes, pixels and number of images of each segment of a named source, or of a path."""
        path = Path(self.images)
        if (path / MANIFEST).is_file():
            store, classes = CodeStore(path), pipeline.num_classes
            vqvae, priors = pipeline.networks()
            check_codes_of(vqvae, str(path), store.checkpoint_hash)
            if classes and store.class_names:
                check_matches(store, priors[-1].config)
                names = classes_of_prior(store.class_names, classes)
                if pipeline.class_names not in ((), names):
                    raise ValueError(
                        "compress: expected codes of the classes of the pipeline "
                        f"({short(', '.join(pipeline.class_names))}), got {path} with "
                        f"{short(', '.join(names))}."
                    )
            numbers = labels_of_prior(store.class_names, classes)  # a file holds no parts
            for maps, labels in codes_in_order(store, _SEGMENT):
                told = numbers[labels] if classes else None
                data = encode_codes(pipeline, maps, labels=told, levels=levels, seed=self.seed)
                yield data, 0, len(labels)
            return
        if source is None:
            batches = _images_at(path, pipeline, skipped)
        else:
            room = max(1, min(_SEGMENT, _PIXELS // prod(source.image_shape[1:])))
            batches = (batch for batch, _ in in_order(source, room))
        for images in batches:
            data = encode_images(pipeline, images, levels=levels, seed=self.seed)
            yield data, len(images) * images.shape[2] * images.shape[3], len(images)


def _images_at(path: Path, pipeline: Pipeline, skipped: list[str] | None) -> Iterator[torch.Tensor]:
    """Images `[B, C, H, W]` of a folder or a file, neighbours of one size together."""
    vqvae, _ = pipeline.networks()
    channels, tile = vqvae.config.image_channels, prod(vqvae.config.image_size)
    inside = path if path.is_dir() else None
    keeps_colour = channels > 1
    batch: list[torch.Tensor] = []
    for name, image in whole_images(path, channels, skipped):
        file = path if inside is None else path / name
        if not keeps_colour and _has_colour(file, inside):
            warnings.warn(
                f"{printable(file)} has colour, and the model's images are grey: its colour is "
                "lost, as is that of any such image after it.",
                stacklevel=2,
            )
            keeps_colour = True  # one warning is enough
        # Each image fills whole tiles, however small it is.
        rows, columns = Tiling(vqvae, image.shape[1], image.shape[2], margins=False).grid
        room = _PIXELS // (rows * columns * tile)
        if batch and (image.shape != batch[0].shape or len(batch) >= room):
            yield to_float(torch.stack(batch))
            batch = []
        batch.append(image)
    yield to_float(torch.stack(batch))


def _has_colour(path: Path, inside: Path | None) -> bool:
    """Whether an image that was decoded has more channels than a grey one."""
    with open_untrusted(path, inside=inside) as file:
        try:
            check_image(file, "compress", (1, 1, 1), convert_channels=False)
        except ValueError:
            return True
    return False
