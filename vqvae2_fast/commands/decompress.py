"""`vqvae2-fast decompress`: what `compress` wrote, as images or as a code store."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro

from vqvae2_fast.codec import decode_image_stream, decode_stream, describe, open_compressed
from vqvae2_fast.codec.tiles import Tiling
from vqvae2_fast.commands.common import Command, ModelOptions, Result, check_out
from vqvae2_fast.data.code_manifest import MANIFEST
from vqvae2_fast.data.code_writer import CodeWriter
from vqvae2_fast.data.pixels import pictures
from vqvae2_fast.files.durable import explained
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.models.weights_hash import codes_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.codec import Description
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["Decompress"]

_NOTHING_LEFT = "The images written so far were removed; make room and start again"


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
        self.prepare()
        check_out(self.out)
        if next(self.out.glob("*.png"), None) is not None:
            raise ValueError(
                f"--out: {self.out} holds images already, which would be mixed with those of the "
                "file; name another folder."
            )
        if (self.out / MANIFEST).exists():
            raise ValueError(
                f"--out: {self.out} holds a code store already; remove it or name another folder."
            )
        pipeline = self.model.open(torch.device("cpu"))
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
        lines = [f"{count:,} {kind} in {self.out}"]
        if drawn or found.missing_levels:
            what = ", ".join(drawn) or "some levels"
            lines.append(f"not in the file, so drawn from the priors: {what}")
        return Result(values, lines)

    def _write_images(self, pipeline: Pipeline, file: Any, found: Description) -> int:
        vqvae, count, total = pipeline.vqvae, 0, 0
        assert isinstance(vqvae, VQVAE2)  # of a checkpoint
        for (height, width), maps in found.maps_of_size.items():
            rows, columns = Tiling(vqvae, height, width, margins=False).grid
            total += maps // max(1, rows * columns)  # 0 only in a file that is then refused
        batches = decode_image_stream(pipeline, file, max_images=self.max_images)
        with self.progress().task("decompress", total) as task:
            # A file of another pipeline is refused here, before there is a folder.
            first = next(batches)
            with self._emptied_on_error():
                for images in chain([first], batches):
                    for picture in pictures(images):
                        path = self.out / f"{count:05d}.png"
                        with explained(f"cannot write {path}", _NOTHING_LEFT):
                            picture.save(path)
                        count += 1
                    task.advance(len(images))
        return count

    @contextmanager
    def _emptied_on_error(self) -> Iterator[None]:
        """Makes --out; on an error removes the images there, which a second try would refuse."""
        made = not self.out.exists()
        with explained(f"cannot write {self.out}"):
            self.out.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except BaseException:
            for path in self.out.glob("*.png"):  # there were none before
                path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # somebody put another file there
                    self.out.rmdir()
            raise

    def _write_store(self, pipeline: Pipeline, file: Any, found: Description) -> int:
        vqvae = pipeline.vqvae
        assert isinstance(vqvae, VQVAE2)  # of a checkpoint
        batches = decode_stream(pipeline, file, max_images=self.max_images)
        with self.progress().task("decompress", found.images) as task:
            first = next(batches)  # before there is a store, as above
            with CodeWriter(
                self.out,
                vqvae.config.num_embeddings,
                vqvae.config.level_sizes,
                class_names=pipeline.class_names or tuple(map(str, range(pipeline.num_classes))),
                checkpoint_hash=codes_hash(vqvae),
                source_records=found.images,
            ) as writer:
                for maps, labels in chain([first], batches):
                    if labels is not None:
                        labels = labels.where(labels < pipeline.num_classes, -1)
                    writer.add(maps, labels)
                    task.advance(len(maps[0]))
        return found.images
