"""Decoded images on the disk: the same pixels, kept while nothing changes."""

from __future__ import annotations

import json
import os
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2_fast.data import ImageFolder, batches, cached_images

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    for i in range(70):
        write(tmp_path / "images" / f"class{i % 2}" / f"{i:02}.png", i)
    return tmp_path / "images"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def decoded(monkeypatch) -> list[str]:
    """The files that an ImageFolder decodes from now on."""
    seen: list[str] = []
    real = ImageFolder._decode
    monkeypatch.setattr(ImageFolder, "_decode", lambda self, n: seen.append(n) or real(self, n))
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_holds_the_set(root, cache, workers) -> None:
    folder = ImageFolder(root, (6, 8))
    mapped = cached_images(folder, cache, num_workers=workers)
    memory = folder.in_memory()
    assert torch.equal(mapped.images, memory.images)
    assert torch.equal(mapped.labels, memory.labels)
    assert (mapped.class_names, mapped.names) == (memory.class_names, memory.names)
    (made,) = cache.iterdir()
    assert (made / "images.u8").stat().st_size == 70 * 3 * 6 * 8


def test_images_are_decoded_once(root, cache, monkeypatch) -> None:
    seen = decoded(monkeypatch)
    first = cached_images(ImageFolder(root, 6), cache)
    assert len(seen) == 70
    again = cached_images(ImageFolder(root, 6), cache)
    assert len(seen) == 70
    assert torch.equal(first.images, again.images)


def touch(root: Path) -> None:
    path = root / "class0" / "00.png"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: write(root / "class0" / "new.png", 99),
        lambda root: (root / "class1" / "01.png").unlink(),
        lambda root: (root / "class1" / "01.png").rename(root / "class0" / "01.png"),
        touch,
    ],
    ids=["added", "removed", "moved", "touched"],
)
def test_a_change_of_files_makes_another_cache_and_removes_the_old(root, cache, change) -> None:
    cached_images(ImageFolder(root, 6), cache)
    change(root)
    folder = ImageFolder(root, 6)
    assert torch.equal(cached_images(folder, cache).images, folder.in_memory().images)
    assert len(list(cache.iterdir())) == 1


def test_a_file_of_another_time_is_another_file(root) -> None:
    before = ImageFolder(root, 6)
    key, data = before.cache_key(), before.fingerprint()
    assert ImageFolder(root, 6).cache_key() == key
    touch(root)  # another picture may have as many bytes
    assert ImageFolder(root, 6).cache_key() != key
    assert ImageFolder(root, 6).fingerprint() == data


def test_a_cache_has_the_fingerprint_of_its_folder_wherever_that_lies(
    root, cache, tmp_path
) -> None:
    data = ImageFolder(root, 6).fingerprint()
    assert cached_images(ImageFolder(root, 6), cache).fingerprint() == data
    assert ImageFolder(root, 6).in_memory().fingerprint() == data
    root.rename(tmp_path / "moved")
    assert ImageFolder(tmp_path / "moved", 6).fingerprint() == data


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "images.u8").write_bytes(b"short"),
        lambda path: (path / "images.u8").unlink(),
        lambda path: (path / "cache.json").write_text("{"),
        lambda path: (path / "cache.json").write_text("[]"),
        lambda path: edit(path, labels=[5] * 70),
        lambda path: edit(path, shape=[70, 3, 6, -6]),
        lambda path: edit(path, names=["x"]),
        lambda path: edit(path, version=2),
    ],
    ids=["cut", "missing", "no_json", "list", "labels", "shape", "names", "version"],
)
def test_a_damaged_cache_is_made_again(root, cache, damage) -> None:
    folder = ImageFolder(root, 6)
    cached_images(folder, cache)
    (made,) = cache.iterdir()
    damage(made)
    assert torch.equal(cached_images(folder, cache).images, folder.in_memory().images)
    assert list(cache.iterdir()) == [made]


def edit(path: Path, **changes) -> None:
    meta = json.loads((path / "cache.json").read_text())
    (path / "cache.json").write_text(json.dumps({**meta, **changes}))


def test_a_full_disk_leaves_the_old_cache_and_nothing_else(root, small_disk) -> None:
    cached_images(ImageFolder(root, 6), small_disk.folder)
    before = sorted(small_disk.folder.rglob("*"))
    (root / "class0" / "00.png").unlink()
    for leave in (4096, 65 * 3 * 6 * 6):  # room for a batch of images, or for all except names
        small_disk.fill(leave)
        with pytest.raises(OSError, match="cannot write .*(space|large).* and start again"):
            cached_images(ImageFolder(root, 6), small_disk.folder)
        small_disk.clear()
        assert sorted(small_disk.folder.rglob("*")) == before
    folder = ImageFolder(root, 6)
    assert torch.equal(cached_images(folder, small_disk.folder).images, folder.in_memory().images)


def test_a_cache_that_is_cut_in_use_is_an_error(root, cache) -> None:
    mapped = cached_images(ImageFolder(root, (9, 12)), cache)
    reader = batches(mapped, 16, seed=0)
    next(reader)
    (path,) = cache.glob("*/images.u8")
    os.truncate(path, 5000)
    for read in (lambda: mapped[60], lambda: next(reader), lambda: mapped.images):
        with pytest.raises(ValueError, match=r"images\.u8 has 5000 bytes, expected 22680"):
            read()


def test_writing_to_the_images_does_not_reach_the_disk(root, cache) -> None:
    folder = ImageFolder(root, 6)
    cached_images(folder, cache).images.zero_()
    assert torch.equal(cached_images(folder, cache).images, folder.in_memory().images)


def test_training_on_a_cache_is_training_on_the_folder(root, cache) -> None:
    folder = ImageFolder(root, 6)
    steps = [
        list(islice(batches(source, 16, seed=0, flip=True, crop_padding=2), 6))
        for source in (folder, cached_images(folder, cache))
    ]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(*steps, strict=True))


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x"])
def test_names_that_are_paths_are_refused(root, cache, name) -> None:
    with pytest.raises(ValueError, match="must be a plain file name"):
        cached_images(ImageFolder(root, 6), cache, name=name)


def test_a_name_with_a_wildcard_removes_no_other_cache(root, cache) -> None:
    for name in ("ab", "a?"):
        cached_images(ImageFolder(root, 6), cache, name=name)
    assert len(list(cache.iterdir())) == 2
