"""Code stores to and from NumPy files, sound and damaged ones."""

from __future__ import annotations

import io
import os
import random
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from vqvae2_fast.data import CodeStore, codes_from_numpy, codes_to_numpy
from vqvae2_fast.testing.codes import CodeSet, random_codes

if TYPE_CHECKING:
    from pathlib import Path


def made_up(k: int = 300, levels: int = 2, count: int = 9) -> CodeSet:
    sizes = tuple((2 + i, 3 * i + 1) for i in range(levels))
    return random_codes(k, count, sizes=sizes, class_names=("a", "ü"), seed=levels)


def assert_same(store: CodeStore, wanted: CodeSet) -> None:
    assert store.num_embeddings == wanted.num_embeddings
    assert store.class_names == wanted.class_names
    codes, labels = store.batch(torch.arange(len(wanted)))
    assert len(store) == len(wanted)
    assert torch.equal(labels, wanted.labels)
    for maps, expected in zip(codes, wanted.codes, strict=True):
        assert torch.equal(maps, expected)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [2, 300, 70000])
def test_there_and_back_is_the_same(tmp_path, levels, k, monkeypatch) -> None:
    monkeypatch.setattr("vqvae2_fast.data.code_numpy._STEP", 4)
    codes = made_up(k, levels)
    codes_to_numpy(codes.write(tmp_path / "first"), tmp_path / "c.npz")
    codes_from_numpy(tmp_path / "c.npz", tmp_path / "s", checkpoint_hash="h")
    assert_same(CodeStore(tmp_path / "s"), codes)
    assert CodeStore(tmp_path / "s").complete


def test_numpy_reads_what_is_written(tmp_path) -> None:
    codes = made_up(levels=3)
    codes_to_numpy(codes.write(tmp_path / "s"), tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as arrays:
        assert list(arrays) == [
            "top",
            "middle",
            "bottom",
            "labels",
            "num_embeddings",
            "class_names",
        ]
        assert arrays["middle"].dtype == np.int16
        assert np.array_equal(arrays["bottom"], codes.codes[2].numpy())
        assert np.array_equal(arrays["labels"], codes.labels.numpy())
        assert int(arrays["num_embeddings"]) == 300
        assert arrays["class_names"].tolist() == ["a", "ü"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.uint16, np.int64, ">i4"])
def test_what_numpy_writes_is_read(tmp_path, save, dtype) -> None:
    codes = made_up()
    top, bottom = (maps.numpy().astype(dtype) for maps in codes.codes)
    save(tmp_path / "c.npz", top=top, bottom=bottom, other=np.zeros(3))
    codes_from_numpy(
        tmp_path / "c.npz", tmp_path / "s", 300, labels=codes.labels.numpy(), class_names="aü"
    )
    assert_same(CodeStore(tmp_path / "s"), codes)


def test_npy_files_are_levels(tmp_path) -> None:
    codes = made_up()
    for i, maps in enumerate(codes.codes):
        np.save(tmp_path / f"{i}.npy", maps.numpy())
    codes_from_numpy(
        [tmp_path / "0.npy", tmp_path / "1.npy"],
        tmp_path / "s",
        300,
        labels=codes.labels.tolist(),
        class_names=("a", "ü"),
    )
    assert_same(CodeStore(tmp_path / "s"), codes)
    codes_from_numpy(tmp_path / "1.npy", tmp_path / "t", 300)
    (maps,), _ = CodeStore(tmp_path / "t").batch(torch.arange(len(codes)))
    assert torch.equal(maps, codes.codes[1])


TOP = np.zeros((4, 2, 3), np.int64)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "holds no array named top .* nothing"),
        ({"codes": TOP}, r"holds no array named top .* holds codes\.npy"),
        ({"top": TOP}, "pass num_embeddings, .* has none"),
        ({"top": TOP, "num_embeddings": 2.5}, "num_embeddings in .* is not an integer"),
        ({"top": TOP, "num_embeddings": [3]}, "num_embeddings in .* is not an integer"),
        ({"top": TOP, "num_embeddings": 0}, r"num_embeddings must be in \[1, 16777216\], got 0"),
        ({"top": TOP + 3, "num_embeddings": 3}, r"codes\[0\] must be in \[0, 3\)"),
        ({"top": TOP * 0.5, "num_embeddings": 3}, r"top in .* to be integers \[N, h, w\], got fl"),
        ({"top": TOP[0], "num_embeddings": 3}, r"got int64 \[2, 3\]"),
        ({"top": TOP, "bottom": TOP[:3], "num_embeddings": 3}, "4 in top in .*, 3 in bottom"),
        ({"top": TOP, "labels": np.zeros(3, int), "num_embeddings": 3}, r"labels \[4\], got int6"),
        ({"top": TOP, "labels": np.zeros(4, int), "num_embeddings": 3}, r"in \[0, 0\)"),
        ({"top": TOP.astype(object), "num_embeddings": 3}, "holds Python objects, which are nev"),
        ({"top": np.asfortranarray(np.ones((4, 2, 3), int)), "num_embeddings": 3}, "Fortran"),
        ({"top": TOP, "class_names": np.array(["x" * 10**6]), "num_embeddings": 3}, "exceeds 1048"),
    ],
    ids=range(15),
)
def test_arrays_that_are_no_codes_are_refused(tmp_path, arrays, text) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(ValueError, match=text):
        codes_from_numpy(tmp_path / "c.npz", tmp_path / "s")


def archive_with_header(path: Path, shape: tuple[int, ...], method: int) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("top.npy", header.getvalue() + bytes(64))


@pytest.mark.parametrize("shape", [(2**40, 2, 2), (2, 2**40, 2**40), (1, 2, 3), (-1, 2, 4)])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_promise_more_than_the_file_has_are_refused(tmp_path, shape, method) -> None:
    archive_with_header(tmp_path / "c.npz", shape, method)
    with pytest.raises(ValueError, match="bytes of data, expected|has shape"):
        codes_from_numpy(tmp_path / "c.npz", tmp_path / "s", 4)
    assert not (tmp_path / "s").exists()


def test_an_archive_that_decompresses_without_end_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vqvae2_fast.data.code_numpy.FREE_BYTES", 2**16)
    np.savez_compressed(tmp_path / "c.npz", top=np.zeros((2**16, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="top in .*c.npz decompresses to more than 100 times"):
        codes_from_numpy(tmp_path / "c.npz", tmp_path / "s", 4)


def test_a_header_without_end_is_refused_unread(tmp_path) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(9))
    with pytest.raises(ValueError, match="a.npy is not an array .a header of 4294967295 bytes"):
        codes_from_numpy(tmp_path / "a.npy", tmp_path / "s", 4)


@pytest.mark.parametrize("header", ["{'descr': '<i8', 'shape': (3,", "-" * 9000 + "1"])
def test_headers_on_which_the_parser_of_python_fails_are_refused(tmp_path, header) -> None:
    start = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little")
    (tmp_path / "a.npy").write_bytes(start + header.encode())
    with pytest.raises(ValueError, match="a.npy is not an array"):
        codes_from_numpy(tmp_path / "a.npy", tmp_path / "s", 4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_fifo_is_refused(tmp_path, name) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is a FIFO"):
        codes_from_numpy(tmp_path / name, tmp_path / "s", 4)


def test_a_cut_npy_is_refused(tmp_path) -> None:
    np.save(tmp_path / "a.npy", TOP)
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match="has 191 bytes of data, expected 192"):
        codes_from_numpy(tmp_path / "b.npy", tmp_path / "s", 4)


def test_missing_files_are_named(tmp_path) -> None:
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=rf"{name} is not a file"):
            codes_from_numpy(tmp_path / name, tmp_path / "s", 4)


def test_a_store_with_records_is_not_overwritten(tmp_path) -> None:
    np.save(tmp_path / "a.npy", TOP)
    codes_from_numpy(tmp_path / "a.npy", tmp_path / "s", 4)
    with pytest.raises(ValueError, match="expected path to be a new or an empty folder, got .*/s"):
        codes_from_numpy(tmp_path / "a.npy", tmp_path / "s", 4)


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vqvae2_fast.data.code_numpy._STEP", 2)
    np.save(tmp_path / "a.npy", np.concatenate([TOP, TOP + 4]))
    with pytest.raises(ValueError, match=r"codes\[0\] must be in \[0, 4\)"):
        codes_from_numpy(tmp_path / "a.npy", tmp_path / "s", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_conversion_that_finds_no_room_leaves_nothing(small_disk, tmp_path) -> None:
    np.save(tmp_path / "a.npy", TOP)
    small_disk.fill(0)
    with pytest.raises(OSError, match=r"cannot write \S*/s: [^.]*\. [^.]* and start again"):
        codes_from_numpy(tmp_path / "a.npy", small_disk.folder / "s", 4)
    small_disk.clear()
    assert not list(small_disk.folder.iterdir())


def test_damaged_archives_are_refused_or_read_never_worse(tmp_path) -> None:
    codes = made_up(levels=1, count=3)
    np.savez_compressed(
        tmp_path / "good.npz",
        top=codes.codes[0].numpy(),
        labels=codes.labels.numpy(),
        num_embeddings=300,
        class_names=np.array(["a", "b"]),
    )
    content = (tmp_path / "good.npz").read_bytes()
    rng = random.Random(0)
    refused = 0
    for case in range(600):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 3))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.2:
            damaged = damaged[: rng.randrange(len(damaged))]
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            codes_from_numpy(tmp_path / "bad.npz", tmp_path / f"s{case}")
        except ValueError:
            refused += 1
    assert refused > 400
