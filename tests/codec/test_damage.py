"""Files that are damaged, cut, spliced, or of another pipeline: refused with a reason."""

from __future__ import annotations

import contextlib
import struct
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.models import tiny_pipeline
from hypothesis import given
from hypothesis import strategies as st

from vqvae2_fast import codec
from vqvae2_fast.codec import bitstream
from vqvae2_fast.codec.bitstream import read_segments, write_segment
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.pipeline import Pipeline

pytestmark = pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")

PIPELINE = tiny_pipeline(num_classes=3)
CODES = [
    torch.randint(13, (4, side, side), generator=torch.Generator().manual_seed(0))
    for side in (4, 8)
]
DATA = codec.encode_codes(PIPELINE, CODES) if _native.module is not None else b""


def refused(data: bytes, message: str, pipeline: Pipeline = PIPELINE) -> None:
    with pytest.raises(ValueError, match=message):
        codec.decode_codes(pipeline, data)


def with_header(**changes: int) -> bytes:
    """The file with header fields overwritten, by name."""
    places = {"version": (4, "B"), "coder": (5, "B"), "flags": (6, "B"), "levels": (7, "B")}
    places |= {"images": (22, "<I")}
    data = bytearray(DATA)
    for name, value in changes.items():
        place, kind = places[name]
        struct.pack_into(kind, data, place, value)
    return checked(data)


def checked(data: bytes | bytearray) -> bytes:
    """A file of one segment of two levels with the right check of its header and table."""
    check = zlib.crc32(data[32:48], zlib.crc32(data[:30])) & 0xFFFF
    return bytes(data[:30]) + struct.pack("<H", check) + bytes(data[32:])


def with_top(payload: bytes) -> bytes:
    """The file with another payload of the top level, whose length and CRC are correct."""
    size = struct.unpack_from("<I", DATA, 32)[0]
    table = struct.pack("<II", len(payload), zlib.crc32(payload))
    return checked(DATA[:32] + table + DATA[40:48] + payload + DATA[48 + size :])


def test_no_bytes() -> None:
    refused(b"", "got no bytes")


def test_another_format() -> None:
    refused(b"\x89PNG" + DATA, r"begins with b'VQ2C'; it begins with b'\\x89PNG'")


def test_a_path_in_the_place_of_bytes() -> None:
    with pytest.raises(TypeError, match="got a str. Open the file of a path with open_compressed"):
        codec.decode_codes(PIPELINE, "images.vq2")  # type: ignore[arg-type]


def test_a_file_in_text_mode(tmp_path) -> None:
    path = tmp_path / "x.vq2"
    path.write_bytes(DATA)
    told = 'expected data to be a file of bytes, got one opened in text mode.*, "rb"'
    with path.open(encoding="utf-8") as file, pytest.raises(TypeError, match=told):
        codec.decode_codes(PIPELINE, file)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", ["a", 0, -1, 2.5, True])
def test_a_limit_that_is_no_number_of_images(limit) -> None:
    told = f"expected max_images to be an integer >= 1, got {limit!r}"
    with pytest.raises(ValueError, match=told):
        codec.decode_codes(PIPELINE, DATA, max_images=limit)


def test_bytes_after_the_last_segment() -> None:
    refused(DATA + b"xyz", "after the last segment it has b'xyz'")


@pytest.mark.parametrize("change", [{"version": 3}, {"flags": 4}])
def test_a_newer_version(change: dict[str, int]) -> None:
    refused(with_header(**change), "or a newer release wrote it")


@pytest.mark.parametrize("byte", range(48))
def test_an_altered_header_or_table(byte: int) -> None:
    for bit in range(8):
        data = bytearray(DATA)
        data[byte] ^= 1 << bit
        with pytest.raises(ValueError):
            codec.decode_codes(PIPELINE, bytes(data))


def test_a_file_of_version_1() -> None:
    refused(with_header(version=1), "got version 1, .* Encode the images again")


def test_an_unknown_engine() -> None:
    refused(with_header(coder=9), "got coder 9")


@pytest.mark.parametrize("levels", [0, 17])
def test_a_number_of_levels_that_cannot_be(levels: int) -> None:
    refused(with_header(levels=levels), "the header is damaged")


@pytest.mark.parametrize("images", [3, 5, 2**32 - 1])
def test_a_number_of_images_that_lies(images: int) -> None:
    with pytest.raises(ValueError, match="does not hold"):
        codec.decode_codes(PIPELINE, with_header(images=images), max_images=2**32)


def test_more_images_than_the_caller_takes() -> None:
    with pytest.raises(ValueError, match="at most 3 images or tiles, .*raise max_images"):
        codec.decode_codes(PIPELINE, DATA, max_images=3)


def test_too_many_images_are_refused_before_they_are_read(monkeypatch) -> None:
    monkeypatch.setattr(bitstream, "_read_payloads", lambda *_: pytest.fail("was read"))
    with pytest.raises(ValueError, match="at most 3 images"):
        codec.describe(DATA, max_images=3)


def test_a_damaged_count_is_damage_and_no_reason_to_raise_the_limit() -> None:
    data = bytearray(DATA)
    data[25] ^= 1  # its highest byte
    with pytest.raises(ValueError, match="a header is damaged: its check differs"):
        codec.describe(bytes(data), max_images=1000)


def test_another_pipeline() -> None:
    other = tiny_pipeline(num_classes=3)
    with torch.no_grad():
        next(other.priors[1].parameters()).view(-1)[0] += 1
    own, found = DATA[8:16].hex(), codec.codes.pipeline_hash(other).hex()
    refused(DATA, f"encoded with pipeline {own}, this is {found}", other)


def test_a_pipeline_whose_weights_changed_since() -> None:
    pipeline = tiny_pipeline(num_classes=3)
    data = codec.encode_codes(pipeline, CODES)
    next(pipeline.priors[0].parameters()).data.view(-1)[0] += 1
    refused(data, "the file was encoded with pipeline", pipeline)


def test_a_pipeline_with_fewer_levels() -> None:
    # A VQVAE2 takes only as many priors as it has levels.
    top = Pipeline(SimpleNamespace(decode=PIPELINE.vqvae.decode), PIPELINE.priors[:1])
    (segment,) = read_segments(DATA)
    header = replace(segment.header, pipeline=codec.codes.pipeline_hash(top))
    refused(write_segment(replace(segment, header=header)), "has 2 levels, the pipeline 1", top)


@pytest.mark.parametrize("at", [50, -1])
def test_an_altered_payload(at: int) -> None:
    data = bytearray(DATA)
    data[at] ^= 1
    refused(bytes(data), "is damaged: its CRC differs")


@pytest.mark.parametrize(("size", "message"), [(20, "header"), (45, "header"), (60, "level 0")])
def test_a_truncated_file(size: int, message: str) -> None:
    refused(DATA[:size], f"truncated.*{message}|{message}.*truncated")


def test_only_a_level_after_the_first_can_be_cut_off() -> None:
    refused(
        DATA[:50], r"level 0: expected \d+ bytes, got 2\. Copy the file again; without this level"
    )
    bottom = struct.unpack_from("<I", DATA, 40)[0]
    cut = DATA[: 2 - bottom]
    refused(
        cut, r"level 1: expected \d+ bytes, got 2\. .* remove the last 2 bytes to decode the levels"
    )
    assert torch.equal(codec.decode_codes(PIPELINE, cut[:-2])[0], CODES[0])


def test_an_error_about_a_file_names_it_and_not_the_function(tmp_path) -> None:
    path = tmp_path / "x.vq2"
    path.write_bytes(DATA[:50])
    for read in (codec.describe, lambda file: codec.decode_codes(PIPELINE, file)):
        with (
            pytest.raises(ValueError, match="x.vq2: the file is"),
            codec.open_compressed(path) as f,
        ):
            read(f)


def test_streams_of_other_images() -> None:
    """A splice whose CRC is right does not end where the encoder ended."""
    other = codec.encode_codes(PIPELINE, [maps.flip(1, 2) for maps in CODES])
    size = struct.unpack_from("<I", other, 32)[0]
    spliced = with_top(other[48 : 48 + size])
    # The top decodes, but to other codes; with them the bottom's streams end elsewhere.
    refused(spliced, "level 1, image 0 does not end where its encoder ended")


def test_a_stream_with_words_behind_its_end() -> None:
    (segment,) = read_segments(DATA)
    top = [segment.streams[0][0] + bytes(4), *segment.streams[0][1:]]
    refused(write_segment(replace(segment, streams=[top, segment.streams[1]])), "level 0, image 0")


def test_engines_of_one_machine_alone_do_not_code() -> None:
    with pytest.raises(ValueError, match="expected engine 'cpu'.*got 'eager'"):
        codec.encode_codes(PIPELINE, CODES, engine="eager")


@given(st.data())
def test_no_damage_does_more_than_raise(data: st.DataObject) -> None:
    """Its CRCs are correct, so that the coder sees it."""
    damaged = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(48, len(DATA) - 1))] = data.draw(st.integers(0, 255))
    sizes = struct.unpack_from("<I4xI", DATA, 32)
    position = 48
    for level, size in enumerate(sizes):
        crc = zlib.crc32(damaged[position : position + size])
        struct.pack_into("<I", damaged, 36 + 8 * level, crc)
        position += size
    with contextlib.suppress(ValueError):
        maps = codec.decode_codes(PIPELINE, bytes(damaged))
        assert all(((level >= 0) & (level < 13)).all() for level in maps)
