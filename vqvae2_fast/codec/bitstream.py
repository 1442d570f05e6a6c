"""The container `.vq2`: segments of a header and one payload per level, without any model.

A segment is little endian: a header of 32 bytes; for each level the length and the CRC-32 of its
payload; then the payloads, coarse to fine. A payload holds, image after image, the number of 32-bit
words of the image's stream as a LEB128 integer, and the words. With labels per image, the coarsest
payload begins with them, int16 each. A file is any number of segments.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from vqvae2_fast.console.words import counted
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import open_untrusted
from vqvae2_fast.ops._checks import checked_integer

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

__all__ = [
    "Description",
    "Header",
    "Segment",
    "TooManyImagesError",
    "UnfitFileError",
    "begins_as_compressed",
    "describe",
    "open_compressed",
    "read_segments",
    "write_segment",
]

# Version 1 had probabilities that depended on the processor in their last bit.
MAGIC, VERSION = b"VQ2C", 2
# The engine that computed the probabilities. 2 is reserved for `cpu_w8a8`.
CODERS = {1: "cpu"}
NO_LABEL = -1
MAX_LEVELS = 16
# magic, version, coder, flags, levels; pipeline, height, width, label, images, seed, check
_HEADER = struct.Struct("<4sBBBB8sHHhIIH")
_LEVEL = struct.Struct("<II")  # bytes of the payload, its CRC-32
_CHECK = struct.Struct("<H")  # the end of a header
_LABELS_PER_IMAGE, _MARGINS = 1, 2
_CHUNK = 2**20  # bytes read at a time


@dataclass(frozen=True)
class Header:
    """What a segment says of itself.

    Args:
        pipeline: The first 8 bytes of the pipeline's hash.
        num_images: Maps per level; every tile of an image counts.
        height, width: Size of each image; 0 if code maps were encoded rather than images.
        label: The label of all images, -1 for none; see `Segment.labels`.
        seed: Seed for drawing the levels that the file leaves out.
        margins: Whether the VQ-VAE saw each tile with a margin of its neighbours.
    """

    pipeline: bytes
    num_images: int
    num_levels: int
    height: int = 0
    width: int = 0
    label: int = NO_LABEL
    seed: int = 0
    coder: int = 1
    margins: bool = False


@dataclass(frozen=True)
class Segment:
    """A header and its streams.

    Args:
        streams: Per level, coarse to fine, one range-coded stream per image. A file that was cut
            off between two payloads has fewer levels than its header says.
        labels: One per image, if they differ.
    """

    header: Header
    streams: Sequence[Sequence[bytes]]
    labels: Sequence[int] = ()


@dataclass
class Description:
    """What a file holds, according to its headers and sizes.

    Args:
        images: Images, where each tile of a large image counts.
        maps_of_size: How many of them there are by (height, width) of the whole images; (0, 0)
            stands for code maps that were encoded without images.
        payload_bits: Per level in the file, coarse to fine, the bits of all images.
        overhead_bytes: Headers, labels and lengths.
        missing_levels: Levels that were written and then cut off from the end of the file. Levels
            that `encode_codes` was told to leave out do not count: the file does not say how many
            the pipeline has.
    """

    pipeline: str = ""
    engine: str = ""
    segments: int = 0
    images: int = 0
    maps_of_size: dict[tuple[int, int], int] = field(default_factory=dict)
    payload_bits: list[int] = field(default_factory=list)
    overhead_bytes: int = 0
    missing_levels: int = 0

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the images, each once; (0, 0) for code maps."""
        return list(self.maps_of_size)

    @property
    def bits_per_image(self) -> float:
        bits = sum(self.payload_bits) + 8 * self.overhead_bytes
        return bits / self.images if self.images else 0.0


def write_segment(segment: Segment) -> bytes:
    """The bytes of a segment."""
    header = segment.header
    payloads = [b"".join(map(_with_length, streams)) for streams in segment.streams]
    if segment.labels:
        labels = struct.pack(f"<{len(segment.labels)}h", *segment.labels)
        payloads[0] = labels + payloads[0]
    packed = _HEADER.pack(
        MAGIC,
        VERSION,
        header.coder,
        (_LABELS_PER_IMAGE if segment.labels else 0) | (_MARGINS if header.margins else 0),
        header.num_levels,
        header.pipeline,
        header.height,
        header.width,
        header.label,
        header.num_images,
        header.seed,
        0,
    )
    table = b"".join(_LEVEL.pack(len(payload), zlib.crc32(payload)) for payload in payloads)
    unchecked = packed[: -_CHECK.size]
    return unchecked + _check_of(unchecked, table) + table + b"".join(payloads)


def _check_of(unchecked: bytes, table: bytes) -> bytes:
    """The check of a header, without its last two bytes, and of its table."""
    return _CHECK.pack(zlib.crc32(table, zlib.crc32(unchecked)) & 0xFFFF)


class TooManyImagesError(ValueError):
    """A file of more images than were allowed."""


class UnfitFileError(ValueError):
    """A sound file, of another pipeline, of another kind than was asked for, or of images that are
    too large.

    Args:
        reason: What was expected and what came.
        remedy: What the caller can do. The service, whose clients do not call from Python, has
            remedies of its own.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)  # both, or it could not be unpickled
        self.reason = reason

    def __str__(self) -> str:
        return " ".join(self.args)


def read_segments(data: bytes | IO[bytes], *, max_images: int | None = None) -> Iterator[Segment]:
    """The segments of a file, one at a time, each checked before it is given.

    Args:
        data: All bytes, or a file opened for reading.
        max_images: Refuse a file of more images than this.

    Raises:
        TypeError: Data that is neither bytes nor a file of bytes.
        ValueError: No such file, a newer version, an altered or truncated payload, too many images
            (`TooManyImagesError`), or max_images below 1. Nothing is allocated by what a header
            merely claims.
    """
    limit = None if max_images is None else checked_integer("max_images", max_images, 1)
    file = io.BytesIO(data) if isinstance(data, (bytes, bytearray, memoryview)) else data
    if not hasattr(file, "read"):
        raise TypeError(
            "expected data to be bytes, or a file opened for reading, got a "
            f"{type(data).__name__}. Open the file of a path with open_compressed."
        )
    if hasattr(file, "encoding"):
        raise TypeError(
            "expected data to be a file of bytes, got one opened in text mode. Open it "
            'with open(path, "rb") or open_compressed(path).'
        )
    images = 0
    start = _read(file, _HEADER.size)
    if not start:
        raise ValueError("expected a .vq2 file, got no bytes.")
    while start:
        header, flags = _read_header(start, images == 0)
        # Before the limit: a count that is damaged is no reason to raise it.
        table = _read_table(file, start, header)
        images += header.num_images
        if limit is not None and images > limit:
            most = counted(limit, "image or tile", "images or tiles")
            raise TooManyImagesError(
                f"expected at most {most}, the file has at least {images:,}; raise "
                "max_images to decode it."
            )
        yield _read_payloads(file, table, header, flags)
        start = _read(file, _HEADER.size)


def begins_as_compressed(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as every `.vq2` file does."""
    with open_untrusted(path) as file:
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def open_compressed(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A `.vq2` file opened for reading; errors about it name the file."""
    try:
        opened = open_untrusted(path)
    except FileNotFoundError as error:
        error.strerror = "expected a .vq2 file, which does not exist"
        raise
    with opened as file:
        try:
            yield file
        except ValueError as error:
            raise ValueError(f"{printable(path)}: {error}") from error


def describe(data: bytes | IO[bytes], *, max_images: int | None = None) -> Description:
    """What a `.vq2` file holds; needs no pipeline. Checks every payload's CRC.

    Raises:
        ValueError: As `decode_codes`.
    """
    found = Description()
    for segment in read_segments(data, max_images=max_images):
        header = segment.header
        found.pipeline, found.engine = header.pipeline.hex(), CODERS[header.coder]
        found.segments += 1
        found.images += header.num_images
        size = (header.height, header.width)
        found.maps_of_size[size] = found.maps_of_size.get(size, 0) + header.num_images
        found.missing_levels += header.num_levels - len(segment.streams)
        found.overhead_bytes += _HEADER.size + _LEVEL.size * header.num_levels
        found.overhead_bytes += 2 * len(segment.labels)
        for level, streams in enumerate(segment.streams):
            if level == len(found.payload_bits):
                found.payload_bits.append(0)
            found.payload_bits[level] += 8 * sum(map(len, streams))
            found.overhead_bytes += sum(len(_with_length(s)) - len(s) for s in streams)
    return found


def _read_table(file: IO[bytes], packed: bytes, header: Header) -> bytes:
    """The table after a header, which is also given as its bytes, if the check of both is right."""
    table = _read(file, header.num_levels * _LEVEL.size)
    if len(table) < header.num_levels * _LEVEL.size:
        raise ValueError("the file is truncated in a header.")
    unchecked, check = packed[: -_CHECK.size], packed[-_CHECK.size :]
    if check != _check_of(unchecked, table):
        raise ValueError("a header is damaged: its check differs.")
    return table


def _read_payloads(file: IO[bytes], table: bytes, header: Header, flags: int) -> Segment:
    """The segment whose header and table are given."""
    labels: tuple[int, ...] = ()
    levels: list[list[bytes]] = []
    for level, (size, crc) in enumerate(_LEVEL.iter_unpack(table)):
        payload = memoryview(_read(file, size))
        if level and size and not payload:
            break  # cut off between two payloads: the rest can be decoded
        if len(payload) < size:
            remedy = "without this level the images cannot be decoded"
            if level:
                rest = counted(len(payload), "byte")
                remedy = f"or remove the last {rest} to decode the levels before this one"
            raise ValueError(
                f"the file is truncated in the payload of level {level}: expected "
                f"{counted(size, 'byte')}, got {len(payload):,}. Copy the file again; {remedy}."
            )
        if zlib.crc32(payload) != crc:
            raise ValueError(f"the payload of level {level} is damaged: its CRC differs.")
        if level == 0 and flags & _LABELS_PER_IMAGE:
            head = 2 * header.num_images
            if head > len(payload):
                raise ValueError("expected a label for each image, got fewer.")
            labels = struct.unpack_from(f"<{header.num_images}h", payload)
            payload = payload[head:]
        levels.append(_split(payload, header.num_images, level))
    return Segment(header, levels, labels)


def _read(file: IO[bytes], size: int) -> bytes:
    """`size` bytes, fewer only at the end of the file; they are allocated as they are read. A pipe
    may give fewer at a time than it is asked for."""
    parts = []
    while size and (part := file.read(min(size, _CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _read_header(packed: bytes, is_first: bool) -> tuple[Header, int]:
    if packed[:4] != MAGIC:
        place = "it begins with" if is_first else "after the last segment it has"
        raise ValueError(
            f"expected a .vq2 file, which begins with {MAGIC!r}; {place} {packed[:4]!r}."
        )
    if len(packed) < _HEADER.size:
        raise ValueError("the file is truncated in a header.")
    _, version, coder, flags, levels, pipeline, height, width, label, images, seed, _ = (
        _HEADER.unpack(packed)
    )
    if version == 1:
        raise ValueError(
            f"expected version {VERSION} of the format, got version 1, whose "
            "probabilities depended on the processor. Encode the images again, if the header is "
            "not damaged."
        )
    if version != VERSION or flags & ~(_LABELS_PER_IMAGE | _MARGINS):
        raise ValueError(
            f"expected version {VERSION} of the format, got version {version} with flags "
            f"{flags}. The header is damaged, or a newer release wrote it."
        )
    if coder not in CODERS:
        raise ValueError(f"expected probabilities of an engine {CODERS}, got coder {coder}.")
    if not 1 <= levels <= MAX_LEVELS or not images:
        raise ValueError(
            f"expected 1 to {MAX_LEVELS} levels and at least one image, got {levels} and "
            f"{images}: the header is damaged."
        )
    margins = bool(flags & _MARGINS)
    return Header(pipeline, images, levels, height, width, label, seed, coder, margins), flags


def _with_length(stream: bytes) -> bytes:
    """A stream after the number of its words in LEB128: seven bits per byte, the lowest first."""
    count, prefix = len(stream) // 4, bytearray()
    while count >= 0x80:
        prefix.append(count & 0x7F | 0x80)
        count >>= 7
    prefix.append(count)
    return bytes(prefix) + stream


def _split(payload: memoryview, num_images: int, level: int) -> list[bytes]:
    """The streams that a payload consists of."""
    damaged = f"the payload of level {level} does not hold a stream for each image."
    if num_images > len(payload):  # each takes at least one byte
        raise ValueError(damaged)
    streams, position = [], 0
    for _ in range(num_images):
        count = shift = 0
        while True:
            if position == len(payload) or shift > 28:
                raise ValueError(damaged)
            byte = payload[position]
            position += 1
            count |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        end = position + 4 * count
        if end > len(payload):
            raise ValueError(damaged)
        streams.append(bytes(payload[position:end]))
        position = end
    if position != len(payload):
        raise ValueError(damaged)
    return streams
