"""Opening untrusted files: whatever is not a regular file in its folder is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import socket
import sys
import tracemalloc

import pytest

from vqvae2_fast.files.untrusted import decompressed, open_untrusted, read_untrusted

unix = pytest.mark.skipif(sys.platform == "win32", reason="needs the files of Unix")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(b"content")
    return tmp_path / "in" / "x"


def test_a_file_is_read_up_to_its_bound(file):
    assert read_untrusted(file, 7) == b"content"
    with pytest.raises(ValueError, match=r"x is larger than 6 bytes"):
        read_untrusted(file, 6)


def test_a_large_read_costs_what_the_file_has(file):
    tracemalloc.start()
    with open_untrusted(file) as opened:
        assert opened.read(2**31) == b"content"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


@unix
def test_a_file_that_lies_about_its_size_is_bounded():
    # Its status says that it has no bytes.
    with pytest.raises(ValueError, match="meminfo is larger than 10 bytes"):
        read_untrusted("/proc/meminfo", 10)


@unix
@pytest.mark.parametrize("mode", ["rb", "rb+", "ab"])
@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a folder", "a device"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, mode, kind, monkeypatch):
    path = tmp_path / "x"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("x")
    elif kind == "a folder":
        path.mkdir()
    else:
        path = "/dev/zero"
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(ValueError, match=f"{path} is {kind}, not a regular file"):
        open_untrusted(path, mode)


@unix
def test_a_fifo_that_takes_the_place_of_a_file_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "x")
    monkeypatch.setattr("vqvae2_fast.files.untrusted.check_regular", lambda *_, **__: None)
    with pytest.raises(ValueError, match="x is a FIFO"):
        open_untrusted(tmp_path / "x")


@unix
def test_links_are_followed_within_the_folder_alone(file, tmp_path):
    (tmp_path / "in" / "near").symlink_to("x")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in" / "far").symlink_to("../secret")
    assert read_untrusted(tmp_path / "in" / "near", 9, inside=tmp_path / "in") == b"content"
    assert read_untrusted(tmp_path / "in" / "far", 9) == b"secret"
    for outside in ("far", "../secret"):
        with pytest.raises(ValueError, match=r"leads out of .*in, which is not followed"):
            open_untrusted(tmp_path / "in" / outside, inside=tmp_path / "in")


@unix
def test_a_folder_of_links_may_itself_be_reached_by_a_link(file, tmp_path):
    (tmp_path / "alias").symlink_to("in")
    assert read_untrusted(tmp_path / "alias" / "x", 9, inside=tmp_path / "alias") == b"content"


@unix
@pytest.mark.parametrize("mode", ["rb+", "ab"])
def test_nothing_is_written_through_a_link(file, tmp_path, mode):
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    for name in ("link", "dangling"):
        with pytest.raises(ValueError, match=f"{name} is a link"):
            open_untrusted(tmp_path / name, mode)
    assert not (tmp_path / "new").exists()


@unix
def test_loops_of_links_name_the_file(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for inside in (None, tmp_path):
        with pytest.raises(OSError, match="loop"):
            open_untrusted(tmp_path / "loop", inside=inside)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"], ids=["null", "surrogate"])
def test_names_that_no_file_can_have_are_shown(tmp_path, name):
    for inside in (None, tmp_path):
        with pytest.raises(ValueError, match=r"a\\(x00|ud800)b cannot be the name of a file"):
            open_untrusted(os.path.join(tmp_path, name), inside=inside)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_compressed_files_are_read_in_a_stream_with_bounds(tmp_path, compress):
    content = os.urandom(2**20) + b"x" * 100
    (tmp_path / "x").write_bytes(compress(content))

    def read(most: int) -> bytes:
        with open_untrusted(tmp_path / "x") as file, decompressed(file, "x", most) as stream:
            return stream.read()

    assert read(len(content)) == content
    with pytest.raises(ValueError, match=f"x holds more than {2**20} bytes decompressed"):
        read(2**20)
    (tmp_path / "x").write_bytes(compress(content)[:-2000])
    with pytest.raises(ValueError, match="x is damaged"):
        read(len(content))
    (tmp_path / "x").write_bytes(b"plain")
    assert read(5) == b"plain"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_decompression_bombs_are_refused(tmp_path, compress, monkeypatch):
    monkeypatch.setattr("vqvae2_fast.files.untrusted.FREE_BYTES", 2**16)
    (tmp_path / "x").write_bytes(compress(bytes(2**23)))
    with (
        open_untrusted(tmp_path / "x") as file,
        decompressed(file, "x", 2**30) as stream,
        pytest.raises(ValueError, match="more than 100 times its size; .*gunzip or bunzip2"),
    ):
        while stream.read(2**16):
            pass


def test_xz_is_named_with_a_remedy(tmp_path):
    (tmp_path / "x").write_bytes(lzma.compress(b"x"))
    with (
        open_untrusted(tmp_path / "x") as file,
        pytest.raises(ValueError, match="x is compressed by xz; decompress it first"),
        decompressed(file, "x", 9),
    ):
        pass
