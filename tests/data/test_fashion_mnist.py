"""Fashion-MNIST's IDX files, small ones written here."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import torch

from vqvae2_fast.data import FASHION_MNIST_CLASSES, load_fashion_mnist

if TYPE_CHECKING:
    from pathlib import Path


def idx(values: torch.Tensor) -> bytes:
    sizes = struct.pack(f">{values.dim()}I", *values.shape)
    return bytes((0, 0, 8, values.dim())) + sizes + values.to(torch.uint8).numpy().tobytes()


def images(count: int) -> torch.Tensor:
    return torch.arange(count * 28 * 28).view(count, 28, 28) % 251


@pytest.fixture(params=["", ".gz"], ids=["plain", "gz"])
def folder(request, tmp_path) -> Path:
    for part, count in (("train", 7), ("t10k", 3)):
        for kind, values in (("images-idx3", images(count)), ("labels-idx1", torch.arange(count))):
            content = idx(values)
            path = tmp_path / f"{part}-{kind}-ubyte{request.param}"
            path.write_bytes(gzip.compress(content) if request.param else content)
    return tmp_path


def file(folder: Path, name: str) -> Path:
    return next(folder.glob(f"{name}*"))


@pytest.mark.parametrize(
    ("split", "labels"),
    [
        ("train", [*range(7)]),
        ("held_out", [*range(3)]),
        ("all", [*range(7), *range(3)]),
    ],
)
def test_splits_are_the_files(folder, split, labels) -> None:
    dataset = load_fashion_mnist(folder, split)
    assert dataset.labels.tolist() == labels
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.images.dtype == torch.uint8
    assert torch.equal(dataset.images[:3, 0], images(3).to(torch.uint8))
    assert dataset.class_names == FASHION_MNIST_CLASSES
    assert len(dataset.class_names) == 10


def test_missing_files_are_named_with_where_to_get_them(tmp_path) -> None:
    with pytest.raises(ValueError, match="neither train-images-idx3-ubyte nor .*dataset-fashion"):
        load_fashion_mnist(tmp_path)


def change(path: Path, edit) -> None:
    content = path.read_bytes()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(edit(gzip.decompress(content))))
    else:
        path.write_bytes(edit(content))


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda c: c[:-1], "has 5487 bytes of data, its header says 5488; get it again"),
        (lambda c: c + b"x", "has more bytes of data, its header says 5488"),
        (lambda c: b"\x00\x00\x0d\x03" + c[4:], "begins with 00000d03, expected 00000803"),
        (lambda c: b"", "begins with nothing"),
        (lambda c: c[:9], "is not an IDX file"),
        (lambda c: c[:4] + b"\xff" * 12 + c[16:], "at most 1073741824 are read"),
        (lambda c: b"PK" + c[2:], "begins with 504b0803"),
    ],
    ids=["cut", "long", "floats", "empty", "header", "huge", "zip"],
)
def test_damaged_files_are_refused(folder, edit, text) -> None:
    change(file(folder, "train-images"), edit)
    with pytest.raises(ValueError, match=text):
        load_fashion_mnist(folder)


def test_other_numbers_of_images_and_labels_are_refused(folder) -> None:
    change(file(folder, "t10k-labels"), lambda c: idx(torch.arange(4)))
    with pytest.raises(ValueError, match="3 images and 4 labels of t10k"):
        load_fashion_mnist(folder, "all")


def test_labels_without_a_name_are_refused(folder) -> None:
    change(file(folder, "t10k-labels"), lambda c: idx(torch.tensor([0, 1, 10])))
    with pytest.raises(ValueError, match="t10k-labels.* label 10 of 10 classes"):
        load_fashion_mnist(folder, "held_out")


def test_a_small_file_cannot_fill_the_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vqvae2_fast.files.untrusted.FREE_BYTES", 2**20)
    head = struct.pack(">4B3I", 0, 0, 8, 3, 2**10, 2**10, 2**7)
    name = tmp_path / "train-images-idx3-ubyte"
    name.write_bytes(head)
    compressed = gzip.compress(head + bytes(2**27))
    tracemalloc.start()
    with pytest.raises(ValueError, match="has 0 bytes of data, its header says 134217728"):
        load_fashion_mnist(tmp_path)
    name.unlink()
    name.with_suffix(".gz").write_bytes(compressed)
    with pytest.raises(ValueError, match="decompresses to more than 100 times its size"):
        load_fashion_mnist(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25
