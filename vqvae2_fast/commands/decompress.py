"""`vqvae2-fast decompress`: what `compress` wrote, as images or as a code store."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vqvae2_fast.codec import decode_image_stream, decode_stream, describe, open_compressed
from vqvae2_fast.codec.images import check_image_size
from vqvae2_fast.codec.tiles import Tiling
from vqvae2_fast.commands.common import Command, ModelOptions, Result, check_out, out_is_taken
from vqvae2_fast.console.words import counted
from vqvae2_fast.data.code_format import MANIFEST
from vqvae2_fast.data.code_writer import CodeWriter
from vqvae2_fast.data.pixels import pictures
from vqvae2_fast.files.durable import (
    alone_in,
    explained,
    part_of,
    sync_file,
    sync_folder,
    write_all,
)
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.models.weights_hash import codes_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from PIL import Image

    from vqvae2_fast.codec import Description
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["Decompress"]

_LOCK = ".decompress.lock"
_ON_FAILURE = ("What was written so far was removed", "start again")


@dataclass(kw_only=True)
class Decompress(Command):
    """Decode a file that `compress` wrote, into 00000.png and so on, or into a code store."""

    file: Annotated[Path, tyro.conf.Positional]
    """The .vq2 file."""
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    out: Path = Path("images")
    """Folder for the images, or for the store if the file was made from one."""
    max_images: int = 1_000_000
    """Refuse a file of more images or tiles than this."""

    def run(self) -> Result:
        self.check_one_process()
        device = self.prepare_on_cpu()
        check_out(self.out)
        if self.out.is_dir():  # before the models are loaded
            with self._alone():
                self._check_free()
        pipeline = self.model.open(device)
        with open_compressed(self.file) as file:
            found = describe(file, max_images=self.max_images)
            file.seek(0)
            if found.sizes == [(0, 0)]:
                kind, count = "records", self._write_store(pipeline, file, found)
            else:
                kind, count = "images", self._write_images(pipeline, file, found)
        names = level_names(len(pipeline.priors))
        drawn = names[len(found.payload_bits) :]
        values: dict[str, Any] = {"out": str(self.out), kind: count, "drawn_levels": list(drawn)}
        lines = [f"{counted(count, kind.removesuffix('s'))} in {self.out}"]
        if drawn or found.missing_levels:
            what = ", ".join(drawn) or "some levels"
            lines.append(f"not in the file, so drawn from the priors: {what}")
        return Result(values, lines)

    def _write_images(self, pipeline: Pipeline, file: Any, found: Description) -> int:
        vqvae, total = pipeline.vqvae, 0
        assert isinstance(vqvae, VQVAE2)  # of a checkpoint
        for (height, width), maps in found.maps_of_size.items():
            check_image_size(height, width)  # of all, before any is written
            rows, columns = Tiling(vqvae, height, width, margins=False).grid
            total += maps // max(1, rows * columns)  # 0 only in a file that is then refused
        batches = decode_image_stream(pipeline, file, max_images=self.max_images)
        with self.progress().task("decompress", total) as task:
            # A file of another pipeline is refused here, before there is a folder.
            first = next(batches)
            with self._own_folder(), _Images(self.out).removed_on_error() as written:
                for images in chain([first], batches):
                    written.add(pictures(images))
                    task.advance(len(images))
        return written.count

    def _check_free(self) -> None:
        """Raises ValueError if --out holds what would be mixed with the file's content."""
        if next(self.out.glob("*.png"), None) is not None:
            raise ValueError(
                f"--out: {self.out} holds images already, which would be mixed with those of the "
                "file; name another folder. If a decompress that was interrupted left them, delete "
                "them."
            )
        if (self.out / MANIFEST).exists():
            raise ValueError(
                f"--out: {self.out} holds a code store already; remove it or name another folder."
            )

    @contextmanager
    def _own_folder(self) -> Iterator[None]:
        """Makes --out and keeps others out of it. If that fails or the block does, and nothing is
        left in a new folder, it goes too."""
        with explained(f"cannot write {self.out}"):
            try:
                self.out.mkdir(parents=True)
                made = True
            except FileExistsError:
                made = False
        try:
            with self._alone():
                self._check_free()  # a second time: another process may have been here
                yield
        except BaseException:
            if made:
                with suppress(OSError):  # somebody has put a file there
                    self.out.rmdir()
            raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other processes of this command out of --out.

        Raises:
            RuntimeError: Another one is there.
        """
        with alone_in(self.out, out_is_taken(self.out), _LOCK):
            try:
                yield
            finally:
                with suppress(OSError):  # Windows keeps open files, and removes this one itself
                    (self.out / _LOCK).unlink()

    def _write_store(self, pipeline: Pipeline, file: Any, found: Description) -> int:
        vqvae = pipeline.vqvae
        assert isinstance(vqvae, VQVAE2)  # of a checkpoint
        batches = decode_stream(pipeline, file, max_images=self.max_images)
        with self.progress().task("decompress", found.images) as task:
            first = next(batches)  # before there is a store, as above
            with (
                self._own_folder(),
                self._store_removed_on_error(),
                CodeWriter(
                    self.out,
                    vqvae.config.num_embeddings,
                    vqvae.config.level_sizes,
                    class_names=pipeline.class_names
                    or tuple(map(str, range(pipeline.num_classes))),
                    checkpoint_hash=codes_hash(vqvae),
                    source_records=found.images,
                ) as writer,
            ):
                writer.on_failure = _ON_FAILURE
                for maps, labels in chain([first], batches):
                    if labels is not None:
                        labels = labels.where(labels < pipeline.num_classes, -1)
                    writer.add(maps, labels)
                    task.advance(len(maps[0]))
        return found.images

    @contextmanager
    def _store_removed_on_error(self) -> Iterator[None]:
        """Removes the store again if the block fails; a second try would refuse it. What was there
        before stays: shards without a manifest may be somebody's only copy."""
        before = set(self.out.iterdir())
        try:
            yield
        except BaseException:
            store = {self.out / MANIFEST, *self.out.glob("shard-*.bin"), self.out / ".lock"}
            for path in store - before:
                path.unlink(missing_ok=True)
            raise


class _Images:
    """Numbered images in a folder that is locked. Each gets its name when it is whole.

    Args:
        count: How many are there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.count = folder, 0
        for part in folder.glob(".[0-9]*.png.*.part"):  # of a process that was killed
            part.unlink(missing_ok=True)

    def add(self, images: Iterable[Image.Image]) -> None:
        """Writes the next images.

        Raises:
            OSError: The disk is full or fails; the error names the path.
        """
        for image in images:
            path = self._path(self.count)
            png = io.BytesIO()
            image.save(png, format="PNG")
            with explained(f"cannot write {path}", *_ON_FAILURE):
                self._write(path, png.getvalue())
        sync_folder(self._folder)

    def _write(self, path: Path, content: bytes) -> None:
        part = part_of(path)
        try:
            with part.open("xb", buffering=0) as file:
                write_all(file, content)
                sync_file(file)
            self.count += 1  # before it has its name, so that an interrupt leaves none behind
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.png"

    @contextmanager
    def removed_on_error(self) -> Iterator[_Images]:
        """Removes the images again if the block fails; a second try would refuse them."""
        try:
            yield self
        except BaseException:
            for number in range(self.count):
                self._path(number).unlink(missing_ok=True)
            raise
