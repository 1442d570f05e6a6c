"""WebDataset shards as an image source: tar files in which members of one name form a sample.

They are read once, from end to end, into a cache on the disk (image_cache.py): training visits
images in random order and resumes at any step, so it needs access to any image. Only the image and
the label of a sample are read; nothing is unpickled.

Tar files are untrusted, and read as streams from beginning to end. The package `webdataset` reads
such files too, but does not notice that one was cut off, cuts file names at `#` and `?` as in a
URL, and holds every member in memory, decompressed, whatever its size.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

import torch

from vqvae2_fast.data.image_cache import open_cache, write_cache
from vqvae2_fast.data.images import (
    MAX_CLASSES,
    check_class_names,
    check_split,
    checked_shape,
    is_held_out,
    stable_hash,
    warn_held_out,
)
from vqvae2_fast.data.pixels import decode_image
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import (
    UntrustedFileError,
    check_regular,
    decompressed,
    open_untrusted,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from vqvae2_fast.data.images import ImageTensorDataset, Split

__all__ = ["MAX_MEMBER_BYTES", "load_web_dataset", "members_of_tar"]


MAX_MEMBER_BYTES = 256 * 2**20  # an image may be as large uncompressed
_MAX_ARCHIVE_BYTES = 2**44
_MAX_HEADER_BYTES = 2**20  # of what tar calls extended headers
_MAX_NAME = 4096  # characters
_SKIP_BYTES = 2**20  # read at a time when a member is skipped
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def members_of_tar(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Names of the regular files in a tar file, plain or compressed by gzip or bzip2, in order.

    Args:
        wanted: Whether the content of this name is wanted; other contents are not read and are
            None.

    Raises:
        OSError: There is no such file, ...
        ValueError: It is not a tar file, damaged or cut, or beyond a limit.
    """
    with open_untrusted(path) as file, decompressed(file, path, _MAX_ARCHIVE_BYTES) as stream:
        forward = _Forward(stream)
        try:
            with tarfile.TarFile(fileobj=forward, tarinfo=_Member) as archive:  # type: ignore[arg-type]
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # would hold all of them
                    if member.isreg():
                        content = forward.content_of(member) if wanted(member.name) else None
                        yield member.name, content
        except UntrustedFileError:
            raise
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{printable(path)} is damaged or not a tar file ({short(error, 200)})."
            ) from error


class _Forward:
    """The interface of a file that tarfile needs, read forwards only."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._at = stream, 0

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._at += len(content)
        return content

    def seek(self, at: int) -> None:
        if at < self._at:
            raise tarfile.ReadError("members overlap")
        while self._at < at:
            if not self.read(min(at - self._at, _SKIP_BYTES)):
                raise tarfile.ReadError("it was cut within a member")

    def content_of(self, member: tarfile.TarInfo) -> bytes:
        if member.size > MAX_MEMBER_BYTES:
            raise tarfile.ReadError(
                f"{short(member.name)} has {member.size} bytes; at most {MAX_MEMBER_BYTES} are read"
            )
        self.seek(member.offset_data)
        content = self.read(member.size)
        if len(content) != member.size:
            raise tarfile.ReadError(f"it was cut within {short(member.name)}")
        return content


class _Member(tarfile.TarInfo):
    """A member whose header has to be complete: tarfile takes an incomplete one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # 512 zeros: the mark of the end
            raise
        except tarfile.HeaderError as error:
            whole = len(buf) == tarfile.BLOCKSIZE
            what = str(error) if whole else "it was cut: the mark of its end is missing"
            raise tarfile.ReadError(what) from error
        if member.size < 0:
            raise tarfile.ReadError(f"{short(member.name)} has {member.size} bytes")
        if member.type in _EXTENDED and member.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {member.size} bytes")
        return member

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            member = super()._proc_member(archive)  # type: ignore[misc]
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        # Extended headers may override what the plain one says.
        if member.size < 0 or len(member.name) > _MAX_NAME:
            raise tarfile.ReadError(f"{short(member.name)} is no member's name or size")
        return member

    def _no_holes(self, *_: object) -> NoReturn:
        raise tarfile.ReadError(
            f"{short(self.name)} is stored as a sparse file, whose size nothing bounds"
        )

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_holes


_BATCH = 64  # images
_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff")
_MAX_LABEL_BYTES = 2**20
_MAX_SHARDS = 10**6


def load_web_dataset(
    shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    image_size: int | tuple[int, int],
    cache: str | os.PathLike[str],
    *,
    image_channels: int = 3,
    split: Split = "all",
    held_out_fraction: float = 0.1,
    class_names: Sequence[str] = (),
    label_key: str = "cls",
    convert_channels: bool = False,
    name: str = "webdataset",
    progress: Callable[[int], None] | None = None,
) -> ImageTensorDataset:
    """All samples of the shards, in order, mapped from a cache that is made the first time.

    Args:
        shards: Local .tar files, plain or compressed by gzip or bzip2. A string may hold braces, as
            in "train-{000..099}.tar", which `pip install 'vqvae2_fast[webdataset]'` expands.
        image_size: (height, width), or one number for both, in pixels.
        cache: Folder of caches, N·C·H·W bytes in all; made again when a shard changes.
        split: "train", "held_out" or "all"; a sample is held out by a hash of its shard's file
            name and its key.
        held_out_fraction: Share of the samples to hold out; of two or more at least one is.
        class_names: One name for each class; without them the classes are numbered up to the
            highest label.
        label_key: Member of a sample that holds its label as a decimal number, or, if it ends in
            "json", as the entry "label" of an object. Samples without it have label -1.
        name: As in `cached_images`: a different one for each set that shares the cache folder.
        progress: Called with the number of images decoded.

    Raises:
        RuntimeError: Braces have to be expanded, and the package `braceexpand` is not installed.
        ValueError: A shard that is not there, damaged, cut or beyond a limit; a
            sample without an image, or with one that cannot be decoded, is too small or of the
            other kind; a label that is not a number or too high.
    """
    shape = checked_shape(image_size, image_channels)
    check_split(split, held_out_fraction)
    check_class_names(class_names)
    label_key = label_key.lower()  # as `_split_name` gives it
    paths = _local(shards)
    made = (shape, convert_channels, label_key, tuple(class_names), split, held_out_fraction)
    key = _fingerprint(paths, made)
    found = open_cache(cache, name, key)
    if found is not None:
        return found

    keys: list[str] = []
    highest = -1
    num_classes = len(class_names) or MAX_CLASSES

    def decoded() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal highest
        images: list[Tensor] = []
        labels: list[int] = []
        forced = None if split == "all" else _forced(paths, held_out_fraction)
        for sample in _samples(paths, lambda kind: kind == label_key or _is_image(kind)):
            label = sample.label(label_key)
            # Classes are numbered up to the highest label of all samples, whatever the split.
            highest = max(highest, label)
            if label >= num_classes:
                raise ValueError(
                    f"{sample.source} has label {label}; expected one of {num_classes} classes."
                )
            held = is_held_out(sample.name, held_out_fraction) or sample.name == forced
            if split != "all" and held != (split == "held_out"):
                continue
            images.append(
                decode_image(io.BytesIO(sample.image()), sample.source, shape, convert_channels)
            )
            labels.append(label)
            keys.append(sample.key)
            if len(images) == _BATCH:
                yield torch.stack(images), torch.tensor(labels, dtype=torch.int64, device="cpu")
                images, labels = [], []
                if progress is not None:
                    progress(len(keys))
        if images:
            yield torch.stack(images), torch.tensor(labels, dtype=torch.int64, device="cpu")

    return write_cache(
        cache,
        name,
        key,
        decoded(),
        shape,
        lambda: tuple(class_names) or tuple(str(label) for label in range(highest + 1)),
        lambda: tuple(keys),
    )


def _local(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    if isinstance(shards, str):
        names = _expanded(shards)
    else:
        names = list(shards) if isinstance(shards, (list, tuple)) else [shards]  # type: ignore[list-item]
    if not names:
        raise ValueError("expected at least one shard, got none.")
    paths = [Path(shard).absolute() for shard in names]
    for shard, path in zip(names, paths, strict=True):
        try:
            check_regular(path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"shard {printable(shard)} is not a local file; fetch remote shards first."
            ) from error
    return paths


def _expanded(pattern: str) -> list[str | os.PathLike[str]]:
    if "{" not in pattern or Path(pattern).is_file():
        return [pattern]
    if find_spec("braceexpand") is None:
        raise RuntimeError(
            "braces in a name need the package braceexpand: pip install 'vqvae2_fast[webdataset]'"
        )
    from braceexpand import braceexpand

    names: list[str | os.PathLike[str]] = list(islice(braceexpand(pattern), _MAX_SHARDS + 1))
    if len(names) > _MAX_SHARDS:
        raise ValueError(f"{pattern} names more than {_MAX_SHARDS} shards.")
    return names


def _fingerprint(paths: list[Path], made: tuple[object, ...]) -> str:
    digest = hashlib.sha256(repr(made).encode())
    for path in paths:
        status = path.stat()
        digest.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


@dataclass
class _Sample:
    """The members of a shard that have one name: what they end in, and what is read of them."""

    shard: Path
    key: str
    members: dict[str, bytes | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name whose hash decides whether it is held out."""
        return f"{self.shard.name}/{self.key}"

    @property
    def source(self) -> str:
        return f"sample {short(self.key)} of {printable(self.shard)}"

    def image(self) -> bytes:
        found = [content for kind, content in self.members.items() if _is_image(kind)]
        if len(found) != 1 or found[0] is None:
            held = short(", ".join(self.members))
            raise ValueError(
                f"{self.source} must hold one image ({', '.join(_EXTENSIONS)}), holds {held}."
            )
        return found[0]

    def label(self, key: str) -> int:
        content = self.members.get(key)
        if content is None:
            return -1
        try:
            if len(content) > _MAX_LABEL_BYTES:
                raise ValueError(f"it has {len(content)} bytes")
            if key.endswith("json"):
                label = json.loads(content)["label"]
                if type(label) is not int:
                    raise ValueError(f"label is {short(label)}")
            else:
                label = int(content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.source}: {key} holds no label ({short(error)}).") from error
        if label < -1:
            raise ValueError(f"{self.source}: {key} holds label {short(label)}.")
        return int(label)


def _samples(paths: list[Path], wanted: Callable[[str], bool]) -> Iterator[_Sample]:
    """The samples of all shards, grouped as the package webdataset groups them.

    Hidden members, such as those that the tar of macOS adds ("cats/._1.jpg"), are passed over.

    Args:
        wanted: Whether to read members that end in this.
    """
    for path in paths:
        sample = _Sample(path, "")
        for name, content in members_of_tar(path, lambda name: wanted(_split_name(name)[1])):
            key, kind = _split_name(name)
            if not key or re.match("__[^/]*__($|/)", name):
                continue
            if key != sample.key:
                if sample.members:
                    yield sample
                sample = _Sample(path, key)
            if kind in sample.members:
                raise ValueError(f"{sample.source} holds {short(kind)} twice.")
            sample.members[kind] = content
        if sample.members:
            yield sample


def _split_name(name: str) -> tuple[str, str]:
    """A member's name up to the first dot of its last part, and the rest in lower case."""
    match = re.match(r"((?:.*/|)[^./]+)[.]([^/]*)$", name)
    return (match[1], match[2].lower()) if match else ("", "")


def _is_image(kind: str) -> bool:
    return kind.split(".")[-1] in _EXTENSIONS


def _forced(paths: list[Path], fraction: float) -> str | None:
    """The one sample to hold out of a small set if the hash holds out none."""
    lowest, count = "", 0
    if not fraction:
        return None
    for sample in _samples(paths, lambda kind: False):
        if is_held_out(sample.name, fraction):
            return None
        count += 1
        if not lowest or stable_hash(sample.name) < stable_hash(lowest):
            lowest = sample.name
    if count < 2:
        return None
    warn_held_out(lowest, count, fraction)
    return lowest
