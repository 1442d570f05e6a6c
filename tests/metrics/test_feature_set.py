"""Features of a set of images, in mapped files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vqvae2_fast.metrics.features import Extracted, extract_features

COUNT = 8


def extractor(images):
    """Features that name their image; those of all images take 64 KiB."""
    number = images[:, 0, 0, :1]
    return Extracted(number.expand(-1, 2048), number + torch.arange(3), -number.expand(-1, 5))


def batches(*sizes):
    numbers = iter(range(100))
    for size in sizes:
        images = torch.tensor([next(numbers) for _ in range(size)], dtype=torch.float32)
        yield images.view(-1, 1, 1, 1).expand(-1, 3, 4, 4), torch.arange(size)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_features_come_back_from_files_that_numpy_reads(tmp_path):
    found = extract_features(extractor, batches(5, 3), COUNT, tmp_path / "new")
    numbers = torch.arange(COUNT, dtype=torch.float32)[:, None]
    assert torch.equal(found.tensor(), numbers.expand(-1, 2048))
    assert torch.equal(found.tensor("spatial"), numbers + torch.arange(3))
    assert torch.equal(found.tensor("log_probabilities"), -numbers.expand(-1, 5))
    assert isinstance(found.features, np.memmap)
    assert np.array_equal(np.load(tmp_path / "new" / "features.npy"), found.features)


@pytest.mark.parametrize("sizes", [(5,), (5, 4)])
def test_another_number_of_images_leaves_the_earlier_features(tmp_path, sizes):
    extract_features(extractor, batches(COUNT), COUNT, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"expected {COUNT} images, got"):
        extract_features(extractor, batches(*sizes), COUNT, tmp_path)
    assert contents(tmp_path) == before


def test_a_full_disk_is_named_and_leaves_the_earlier_features(small_disk):
    folder = small_disk.folder / "features"
    found = extract_features(extractor, batches(COUNT), COUNT, folder)
    small_disk.fill(16_384)
    with pytest.raises(OSError, match=r"cannot write .*features\.npy: .* and start again"):
        extract_features(extractor, batches(2, 2, 2, 2), COUNT, folder)
    small_disk.clear()
    assert found.features[:, 0].tolist() == list(range(COUNT))
    assert set(contents(folder)) == {"features.npy", "log_probabilities.npy", "spatial.npy"}
