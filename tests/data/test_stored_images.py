"""Images in a file that is read, one image at a time."""

from __future__ import annotations

import json
import os
import tracemalloc

import pytest
import torch

from vqvae2_fast.data import sample_folder, to_float
from vqvae2_fast.data.sample_folder import samples_of_folder, store_images


def batches(*sizes, shape=(3, 4, 5)):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        images = torch.randint(256, (size, *shape), generator=generator, dtype=torch.uint8)
        yield images, torch.arange(size)


def test_images_come_back_with_their_labels(tmp_path):
    images = store_images(tmp_path / "images.raw", 5, batches(3, 2), ["a", "b", "c"])
    expected = [
        (image, int(label)) for own in batches(3, 2) for image, label in zip(*own, strict=True)
    ]
    assert len(images) == 5 and images.image_shape == (3, 4, 5)
    for (image, label), (own, number) in zip(images, expected, strict=True):
        assert torch.equal(image, own) and label == number


def test_floating_point_images_are_rounded_to_bytes(tmp_path):
    ((pixels, labels),) = batches(2)
    images = store_images(tmp_path / "images.raw", 2, [(to_float(pixels), labels)])
    assert torch.equal(torch.stack([image for image, _ in images]), pixels)


def test_a_file_cut_off_in_use_is_an_error_and_no_signal(tmp_path):
    images = store_images(tmp_path / "images.raw", 5, batches(5))
    os.truncate(images.path, 3 * 60 + 1)
    assert images[2][1] == 2
    with pytest.raises(ValueError, match=r"images.raw was cut off: image 3 is not whole"):
        images[3]


def test_a_full_disk_is_named(small_disk):
    small_disk.fill(0)
    with pytest.raises(OSError, match=r"cannot write .*images\.raw: .* and start again"):
        store_images(small_disk.folder / "images.raw", 5, batches(3, 2))


@pytest.mark.parametrize("count", [4, 6])
def test_another_number_of_images_is_an_error(tmp_path, count):
    with pytest.raises(ValueError, match=f"expected {count} images, got 5"):
        store_images(tmp_path / "images.raw", count, batches(3, 2))


def test_images_of_two_sizes_are_an_error(tmp_path):
    mixed = [*batches(1), *batches(1, shape=(3, 8, 5))]
    with pytest.raises(ValueError, match=r"expected images \[3, 4, 5\], got \[3, 8, 5\]"):
        store_images(tmp_path / "images.raw", 2, mixed)


def test_many_samples_take_little_memory(tmp_path, monkeypatch):
    count, image = 5000, torch.zeros(3, 4, 5, dtype=torch.uint8)
    rows = [
        {"sample": n, "class": "ab"[n % 2], "probability": 0.5, "seed": 1} for n in range(count)
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    del rows
    monkeypatch.setattr(sample_folder, "read_sample", lambda folder, sample: image)
    tracemalloc.start()
    found = samples_of_folder(tmp_path, tmp_path / "images.raw", ["a", "b"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.equal(found.labels, torch.arange(count) % 2)
    assert peak < 100 * count + 2**20  # a row alone, as a dictionary, takes more


def test_a_pipeline_without_names_writes_the_numbers_of_its_classes(tmp_path, monkeypatch):
    rows = [{"sample": n, "class": name} for n, name in enumerate(("1", "0", "b"))]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    image = torch.zeros(3, 4, 5, dtype=torch.uint8)
    monkeypatch.setattr(sample_folder, "read_sample", lambda folder, sample: image)
    found = samples_of_folder(tmp_path, tmp_path / "images.raw", ["a", "b"])
    assert found.labels.tolist() == [1, 0, 1]
