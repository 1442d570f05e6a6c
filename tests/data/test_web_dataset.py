"""WebDataset shards as an image source, and their tar files."""

from __future__ import annotations

import bz2
import gzip
import io
import pickle
import sys
import tarfile
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2_fast.data import load_web_dataset

if TYPE_CHECKING:
    from pathlib import Path


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "braceexpand", raising=False)
    sys.path_importer_cache.clear()
    with pytest.raises(RuntimeError, match=r"pip install 'vqvae2_fast\[webdataset\]'"):
        load_web_dataset("x-{0..1}.tar", 6, tmp_path)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path) -> str:
    pytest.importorskip("braceexpand", reason="needs vqvae2_fast[webdataset]")
    for shard in range(3):
        members = {}
        for i in range(shard * 40, shard * 40 + 40):
            members[f"{i:04}.png"] = png(i)
            if i % 4:
                members[f"{i:04}.cls"] = str(i % 4 - 1).encode()
        write(tmp_path / "sh ards" / f"train-{shard:03}.tar", members)
    return str(tmp_path / "sh ards" / "train-{000..002}.tar")


def test_all_samples_are_there_in_order(shards, tmp_path) -> None:
    dataset = load_web_dataset(shards, (9, 12), tmp_path / "cache", class_names="abc")
    assert len(dataset) == 120
    assert dataset.names[45] == "0045"
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.labels.tolist() == [i % 4 - 1 for i in range(120)]
    for i in (0, 64, 119):
        assert torch.equal(dataset.images[i], torch.from_numpy(pixels(i)).permute(2, 0, 1))


def test_classes_are_numbered_where_no_names_are_given(shards, tmp_path) -> None:
    assert load_web_dataset(shards, 6, tmp_path / "c").class_names == ("0", "1", "2")


def test_shards_are_read_once_until_one_changes(shards, tmp_path, monkeypatch) -> None:
    seen: list[int] = []
    load_web_dataset(shards, 6, tmp_path / "c", progress=seen.append)
    assert seen == [64]
    load_web_dataset(shards, 6, tmp_path / "c", progress=seen.append)
    assert seen == [64]
    write(tmp_path / "sh ards" / "train-001.tar", {"x.png": png(7)})
    dataset = load_web_dataset(shards, 6, tmp_path / "c", progress=seen.append)
    assert len(dataset) == 81
    assert len(list((tmp_path / "c").iterdir())) == 1


@pytest.mark.parametrize(("key", "content"), [("json", b'{"label": 2}'), ("Cls", b"2")])
def test_labels_are_read_from_the_member_that_is_named(tmp_path, key, content) -> None:
    write(tmp_path / "a.tar", {"a.png": png(0), f"a.{key}": content})
    dataset = load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c", label_key=key)
    assert dataset.labels.tolist() == [2]


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_pickles_in_a_shard_are_never_opened(tmp_path) -> None:
    members = {"a.png": png(0), "a.pyd": pickle.dumps(Harmful()), "a.pkl": pickle.dumps(Harmful())}
    write(tmp_path / "a.tar", members)
    assert len(load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c")) == 1


@pytest.mark.parametrize("shard", ["pipe:touch {}/harm", "http://127.0.0.1/a.tar", "none.tar", ""])
def test_only_local_files_are_read(tmp_path, shard) -> None:
    with pytest.raises(ValueError, match="is not a local file"):
        load_web_dataset([shard.format(tmp_path)], 6, tmp_path / "c")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"a.txt": b"x"}, "sample a of .* must hold one image .* holds txt"),
        ({"a.png": png(0), "a.jpg": png(0)}, "must hold one image"),
        ({"a.png": b"no image"}, "sample a of .* cannot be decoded"),
        ({"a.png": png(0), "a.cls": b"cat"}, "cls holds no label"),
        ({"a.png": png(0), "a.cls": b"-2"}, "cls holds label -2"),
        ({"a.png": png(0), "a.cls": b"3"}, "has label 3; expected one of 3 classes"),
    ],
    ids=["none", "two", "corrupt", "text", "negative", "large"],
)
def test_bad_samples_are_named(tmp_path, members, text) -> None:
    write(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=text):
        load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c", class_names="abc")
    assert list((tmp_path / "c").iterdir()) == []


def test_a_shard_that_was_cut_anywhere_is_refused(tmp_path) -> None:
    write(tmp_path / "a.tar", {f"{i}.{kind}": png(i) for i in range(2) for kind in ("png", "x")})
    content = (tmp_path / "a.tar").read_bytes()
    end = len(content.rstrip(b"\0"))
    end += -end % 512  # behind it zeros, of which the first 512 are the mark of the end
    for cut in (*range(0, end + 512, 100), *range(0, end + 512, 512), end + 511):
        (tmp_path / "a.tar").write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"a\.tar is damaged or not a tar file"):
            load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c")
    (tmp_path / "a.tar").write_bytes(content[: end + 512])
    assert len(load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c")) == 2


@pytest.mark.parametrize("name", ["a#b.tar", "a?b.tar", "a{b.tar"])
def test_a_shards_name_is_no_url(tmp_path, name) -> None:
    write(tmp_path / "a", {"0.png": png(1)})
    write(tmp_path / name, {"0.png": png(2)})
    dataset = load_web_dataset(str(tmp_path / name), (9, 12), tmp_path / "c")
    assert torch.equal(dataset.images[0], torch.from_numpy(pixels(2)).permute(2, 0, 1))


@pytest.mark.parametrize("label", ["262144", "3000000000", "9" * 22, "9" * 5000], ids=len)
def test_one_label_cannot_name_classes_without_end(tmp_path, label) -> None:
    write(tmp_path / "a.tar", {"a.png": png(0), "a.cls": label.encode()})
    with pytest.raises(ValueError, match="expected one of 262144 classes|cls holds no label"):
        load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress], ids=["gz", "bz2"])
def test_compressed_shards_are_read(tmp_path, compress) -> None:
    write(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(3)})
    (tmp_path / "b.tar.z").write_bytes(compress((tmp_path / "a.tar").read_bytes()))
    assert len(load_web_dataset(tmp_path / "b.tar.z", 6, tmp_path / "c")) == 3


def test_a_member_that_is_too_large_is_refused_unread(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vqvae2_fast.data.web_dataset.MAX_MEMBER_BYTES", 10**6)
    write(tmp_path / "a.tar", {"a.png": bytes(10**6 + 1)})
    (tmp_path / "a.tgz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    tracemalloc.start()
    for name in ("a.tar", "a.tgz"):
        with pytest.raises(ValueError, match=r"a\.png has 1000001 bytes; at most 1000000 are read"):
            load_web_dataset(tmp_path / name, 6, tmp_path / "c")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6


def test_members_that_are_not_wanted_may_be_large(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vqvae2_fast.data.web_dataset.MAX_MEMBER_BYTES", 10**6)
    write(tmp_path / "a.tar", {"a.png": png(0), "a.npy": bytes(10**6 + 1), "b.png": png(1)})
    assert len(load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c")) == 2


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(values: dict[str, str], name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = 0, values
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (header("a.png", 2**70), r"a\.png has \d+ bytes|cut within a member"),
        (header("a.txt", 2**70), "cut within a member"),
        (header("a.png", -512), "has -512 bytes"),
        (pax({"size": "-1024"}, "a.png"), "no member's name or size"),
        (header("a.png", 100, tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}, "a.png"), "a sparse file"),
        (pax({"GNU.sparse.size": "9"}, "a.png"), "a sparse file"),
        (pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, "a.png"), "a sparse file"),
        (header("x", 2**21, tarfile.XHDTYPE), "an extended header of 2097152 bytes"),
        (header("x", 2**21, tarfile.GNUTYPE_LONGNAME), "an extended header of 2097152 bytes"),
        (header("x", 512, tarfile.XHDTYPE) + b"0 a=b\n".ljust(512, b"\0"), "invalid header"),
        (header("x", 512, tarfile.XHDTYPE) + b"%d a=b\n".ljust(512, b"\0") % 2**70, "too large"),
        (header("x", 512, tarfile.GNUTYPE_LONGNAME) + bytes(1024), "end of file header"),
        (pax({"path": "x" * 5000}, "a.png"), "no member's name or size"),
        (b"9" * 512, "invalid header|bad checksum"),
        (b"", "the mark of its end is missing"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:20],
)
def test_harmful_headers_are_refused(tmp_path, content, text) -> None:
    write(tmp_path / "good.tar", {"0.png": png(0)})
    good = (tmp_path / "good.tar").read_bytes().rstrip(b"\0")
    good += bytes(-len(good) % 512)
    for before in (b"", good):
        (tmp_path / "a.tar").write_bytes(before + content)
        with pytest.raises(ValueError, match=rf"a\.tar is damaged or not a tar file .*({text})"):
            load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_a_chain_of_headers_without_end_is_refused(tmp_path) -> None:
    long = header("x", 512, tarfile.GNUTYPE_LONGNAME) + bytes(512)
    (tmp_path / "a.tar").write_bytes(long * 3000)
    with pytest.raises(ValueError, match="damaged or not a tar file .*recursion"):
        load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c")


def test_hidden_members_are_passed_over(tmp_path) -> None:
    write(
        tmp_path / "a.tar", {"x/._0.png": b"of macOS", "x/0.png": png(3), "._x": b"", ".1.png": b""}
    )
    assert load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c").names == ("x/0",)
