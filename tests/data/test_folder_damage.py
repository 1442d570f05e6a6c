"""Folders with damaged, huge or misleading files, and links, FIFOs and odd names in them."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import pytest
from helpers.images import noise, write_image
from PIL import Image

from vqvae2_fast.data import ImageFolder, pixels
from vqvae2_fast.data.folder import whole_images

if TYPE_CHECKING:
    from pathlib import Path


def test_corrupt_file_is_named_before_training_if_its_header_is_bad(tmp_path) -> None:
    write_image(tmp_path / "a.png", (0, 0, 0))
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"bad\.png cannot be decoded .*skip_corrupt"):
        ImageFolder(tmp_path, 8)


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm"])
def test_a_file_that_was_cut_is_named_before_training(tmp_path, suffix) -> None:
    path = tmp_path / f"cut.{suffix}"
    write_image(path, noise(64, 64))
    ImageFolder(tmp_path, 8)
    content = path.read_bytes()
    for part in (0.5, 0.9):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(ValueError, match=rf"cut\.{suffix} cannot be decoded \(.*skip_corrupt"):
            ImageFolder(tmp_path, 8)


def test_data_behind_the_end_of_an_image_is_no_damage(tmp_path) -> None:
    write_image(tmp_path / "a.jpg", noise(64, 64))
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"a film")
    assert len(ImageFolder(tmp_path, 8)) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_refused_and_does_not_hang(tmp_path) -> None:
    write_image(tmp_path / "a.png", (0, 0, 0))
    dataset = ImageFolder(tmp_path, 8)
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    for read in (lambda: dataset[0], lambda: ImageFolder(tmp_path, 8)):
        with pytest.raises(ValueError, match=r"a\.png is a FIFO, not a regular file"):
            read()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_skipped_on_request(tmp_path) -> None:
    write_image(tmp_path / "a.png", (0, 0, 0))
    os.mkfifo(tmp_path / "b.png")
    with pytest.warns(UserWarning, match="skipped 1 of 2"):
        assert ImageFolder(tmp_path, 8, skip_corrupt=True).names == ("a.png",)
    skipped: list[str] = []
    assert [name for name, _ in whole_images(tmp_path, 3, skipped)] == ["a.png"]
    assert skipped == ["b.png"]


def test_a_link_out_of_the_folder_that_comes_later_is_refused(tmp_path) -> None:
    write_image(tmp_path / "s.png", (0, 0, 0))
    write_image(tmp_path / "set" / "a.png", (0, 0, 0))
    dataset = ImageFolder(tmp_path / "set", 8)
    (tmp_path / "set" / "a.png").unlink()
    (tmp_path / "set" / "a.png").symlink_to(tmp_path / "s.png")
    with pytest.raises(ValueError, match=r"a\.png leads out of .*set"):
        dataset[0]


@pytest.mark.parametrize("target", ["nowhere.png", "b.png"])
def test_a_link_to_nothing_or_itself_is_named_or_skipped_on_request(tmp_path, target) -> None:
    write_image(tmp_path / "a.png", (0, 0, 0))
    (tmp_path / "b.png").symlink_to(target)
    for read in (lambda: ImageFolder(tmp_path, 8), lambda: list(whole_images(tmp_path, 3))):
        with pytest.raises(ValueError, match=r"b\.png is a link .*skip_corrupt"):
            read()
    with pytest.warns(UserWarning, match="skipped 1 of 2"):
        assert ImageFolder(tmp_path, 8, skip_corrupt=True).names == ("a.png",)


def test_a_subfolder_that_cannot_be_read_is_named(tmp_path, monkeypatch) -> None:
    """Its images must not be left out unnoticed."""
    write_image(tmp_path / "a" / "a.png", (0, 0, 0))
    write_image(tmp_path / "a" / "locked" / "b.png", (0, 0, 0))
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)  # root may read every folder
    with pytest.raises(PermissionError, match="locked"):
        ImageFolder(tmp_path, 8)


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path) -> None:
    for number in range(12):
        write_image(tmp_path / "set" / f"{number}.png", (0, 0, 0))
    source = os.fsencode(tmp_path / "set" / "0.png")
    os.rename(source, source.replace(b"0.png", b"\xff.png"))
    sides = [len(ImageFolder(tmp_path / "set", 8, split=side)) for side in ("train", "held_out")]
    assert sum(sides) == 12
    (tmp_path / "set" / "1.png").write_bytes(b"")
    os.rename(tmp_path / "set", os.fsencode(tmp_path) + b"/\x1b[2J\xfe")
    with pytest.raises(ValueError, match=r"\\x1b\[2J\\udcfe/1\.png cannot be decoded"):
        ImageFolder(os.fsdecode(os.fsencode(tmp_path) + b"/\x1b[2J\xfe"), 8)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mode", ["P", "RGB", "I;16"])
def test_large_images_take_little_more_than_their_pixels(tmp_path, mode) -> None:
    image = Image.new(mode, (4096, 8192))
    image.save(tmp_path / "a.png", **({"transparency": 0} if mode == "P" else {}))
    code = (
        "import sys; from vqvae2_fast.data import ImageFolder\n"
        # Not ru_maxrss, which counts the process that started this one.
        "lines = lambda: dict(line.split(':') for line in open('/proc/self/status'))\n"
        "peak = lambda: int(lines()['VmHWM'].split()[0])  # KiB\n"
        "before = peak()\n"
        "ImageFolder(sys.argv[1], 8, convert_channels=True)[0]\n"
        "print(peak() - before)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, check=True
    )
    # 32 Mi pixels take 128 MiB as RGB, 32 MiB more as indices of a palette, 64 MiB as 16 bits.
    assert int(output.stdout) < 230 * 1024


def test_an_image_within_the_limit_is_read_without_a_warning_of_pillow(
    tmp_path, monkeypatch
) -> None:
    write_image(tmp_path / "a.png", noise(12, 12))
    monkeypatch.setattr(pixels, "MAX_PIXELS", 150)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ImageFolder(tmp_path, 8)) == 1
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("side", [12_000, 13_300])  # Pillow warns from 9,460 on
def test_images_of_too_many_pixels_are_refused_unread_and_without_a_warning(tmp_path, side) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 %d %d 255\n" % (side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = rf"a\.pgm .*{side}x{side} pixels are more than the 134217728"
        with pytest.raises(ValueError, match=told):
            ImageFolder(tmp_path, 8, image_channels=1)


def _tags(*entries: tuple[int, int, bytes]) -> bytes:
    """A TIFF directory of tags of one value each, as (tag, type, four bytes)."""
    body = b"".join(struct.pack("<HHI4s", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0" * 4


def test_a_tag_of_a_wrong_type_does_not_keep_an_image_from_being_turned(tmp_path) -> None:
    description = (0x010E, 11, struct.pack("<f", 1.0))  # which should be a text
    exif = _tags((0x0112, 3, struct.pack("<HH", 6, 0)), description)
    write_image(tmp_path / "a.jpg", noise(8, 16), exif=b"Exif\0\0" + exif)
    assert ImageFolder(tmp_path, (16, 8))[0][0].shape == (3, 16, 8)


def test_corrupt_files_are_skipped_and_counted_on_request(tmp_path) -> None:
    for name in ("a.png", "c.png"):
        write_image(tmp_path / name, (0, 0, 0))
    write_image(tmp_path / "b.jpg", noise(64, 64))
    _truncate(tmp_path / "b.jpg")
    (tmp_path / "d.gif").write_bytes(b"GIF89a")
    expected = r"skipped 2 of 4 images in .*, which are corrupt; the first is b\.jpg"
    with pytest.warns(UserWarning, match=expected):
        dataset = ImageFolder(tmp_path, 8, skip_corrupt=True)
    assert dataset.skipped == ("b.jpg", "d.gif")
    assert dataset.names == ("a.png", "c.png")


def test_small_images_are_skipped_and_counted_on_request(tmp_path) -> None:
    write_image(tmp_path / "a.png", noise(8, 8))
    write_image(tmp_path / "b.png", noise(7, 8))
    write_image(tmp_path / "c.png", noise(8, 7))
    (tmp_path / "d.png").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match=r"skipped 1 of 4 images in .*, which are corrupt"),
        pytest.warns(UserWarning, match=r"skipped 2 .* are too small; the first is b\.png"),
    ):
        dataset = ImageFolder(tmp_path, 8, skip_corrupt=True, skip_small=True)
    assert dataset.names == ("a.png",)
    assert dataset.skipped == ("b.png", "c.png", "d.png")


def test_small_images_are_an_error_that_names_the_way_out(tmp_path) -> None:
    write_image(tmp_path / "a.png", noise(8, 8))
    write_image(tmp_path / "b.png", noise(7, 8))
    with pytest.raises(ValueError, match=r"b\.png is 7x8 .* or set skip_small"):
        ImageFolder(tmp_path, 8)
    with (
        pytest.warns(UserWarning, match="skipped 2"),
        pytest.raises(ValueError, match="all 2 images of .* are too small"),
    ):
        ImageFolder(tmp_path, 9, skip_small=True)


def test_only_corrupt_images_is_an_error_even_when_skipping(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="skipped 1"),
        pytest.raises(ValueError, match="all 1 images of .* are corrupt"),
    ):
        ImageFolder(tmp_path, 8, skip_corrupt=True)


def test_a_file_of_another_format_is_not_opened(tmp_path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded"):
        ImageFolder(tmp_path, 8)


def test_link_out_of_the_folder_is_refused(tmp_path) -> None:
    write_image(tmp_path / "secret" / "s.png", (0, 0, 0))
    write_image(tmp_path / "set" / "a.png", (0, 0, 0))
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "secret" / "s.png")
    with pytest.raises(ValueError, match=r"b\.png is a link out of"):
        ImageFolder(tmp_path / "set", 8)


def test_one_whole_image_may_be_named_by_a_link(tmp_path) -> None:
    write_image(tmp_path / "a" / "x.png", (1, 2, 3))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "y.png").symlink_to("../a/x.png")
    assert [name for name, _ in whole_images(tmp_path / "b" / "y.png", 3)] == ["y.png"]
    with pytest.raises(ValueError, match="y.png is a link out of"):
        list(whole_images(tmp_path / "b", 3))


def test_link_to_a_folder_is_refused(tmp_path) -> None:
    write_image(tmp_path / "set" / "a" / "a.png", (0, 0, 0))
    (tmp_path / "set" / "b").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="b is a link to a folder"):
        ImageFolder(tmp_path / "set", 8)


def test_link_inside_the_folder_and_a_linked_root_are_read(tmp_path) -> None:
    write_image(tmp_path / "set" / "a.png", (7, 0, 0))
    (tmp_path / "set" / "b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert len(ImageFolder(tmp_path / "link", 8)) == 2
