"""Augmentations: functions of (seed, epoch, image), and what they do to pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vqvae2_fast.data import ImageTensorDataset, augment, batches
from vqvae2_fast.data.augment import crop_offsets, flips, recoloured, zoomed

MANY = torch.arange(20_000)


def noise(count: int, size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size + 1), generator=generator).to(torch.uint8)


def test_an_image_has_its_words_in_any_batch() -> None:
    order = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flips(MANY, seed=1, epoch=2)[order], flips(order, seed=1, epoch=2))
    offsets = crop_offsets(MANY, 4, seed=1, epoch=2)
    assert torch.equal(offsets[order], crop_offsets(order, 4, seed=1, epoch=2))


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 3}])
def test_seeds_and_epochs_are_independent(change) -> None:
    one, two = (flips(MANY, **{"seed": 1, "epoch": 2, **c}) for c in ({}, change))
    assert abs((one == two).float().mean() - 0.5) < 0.02
    assert abs(one.float().mean() - 0.5) < 0.02


def test_offsets_are_uniform_and_independent_of_each_other_and_of_flips() -> None:
    offsets = crop_offsets(MANY, 2, seed=0, epoch=0)
    cells = (offsets[:, 0] + 2) * 5 + offsets[:, 1] + 2
    cells = cells * 2 + flips(MANY, seed=0, epoch=0).long()
    counts = cells.bincount(minlength=50)
    assert counts.numel() == 50
    # 400 expected in each; 5 standard deviations are 100.
    assert 300 < counts.min() <= counts.max() < 500


def test_values_are_pinned() -> None:
    """A run resumes correctly under another version only if these values stay the same."""
    assert flips(torch.arange(8), seed=0, epoch=0).long().tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
    assert crop_offsets(torch.arange(4), 4, seed=0, epoch=0).tolist() == [
        [-3, -1],
        [3, -4],
        [-2, -4],
        [-3, 2],
    ]


@pytest.mark.parametrize("padding", [4, 30])  # 30 exceeds the image
def test_crops_are_those_of_the_padded_image(padding) -> None:
    images, indices = noise(50), torch.arange(50)
    out = augment(images, indices, seed=3, epoch=1, crop_padding=padding)
    padded = F.pad(images.float(), (padding,) * 4, mode="replicate").to(torch.uint8)
    for image, wide, (down, right) in zip(
        out, padded, crop_offsets(indices, padding, seed=3, epoch=1).tolist(), strict=True
    ):
        assert torch.equal(image, wide[:, padding + down :, padding + right :][:, :6, :7])


def test_flips_come_after_crops() -> None:
    images, indices = noise(9), torch.arange(9)
    cropped = augment(images, indices, seed=0, epoch=0, crop_padding=2)
    both = augment(images, indices, seed=0, epoch=0, crop_padding=2, flip=True)
    mirrored = flips(indices, seed=0, epoch=0)
    assert 0 < mirrored.sum() < 9
    assert torch.equal(both[mirrored], cropped[mirrored].flip(-1))
    assert torch.equal(both[~mirrored], cropped[~mirrored])


def test_negative_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="expected padding .* got -1"):
        augment(noise(1), torch.arange(1), seed=0, epoch=0, crop_padding=-1)
    with pytest.raises(ValueError, match="expected crop_padding .* got -1"):
        batches(ImageTensorDataset(noise(2)), 1, seed=0, crop_padding=-1)


def test_colours_change_but_black_and_white_stay():
    images = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3).expand(50, 3, 1, 3)
    out = recoloured(images, torch.arange(50), 0.3, seed=0, epoch=1)
    assert torch.equal(out[..., 0], images[..., 0])
    assert torch.equal(out[..., 2], images[..., 2])
    exponents = ((out[..., 1] + 1) / 2).log2().neg().flatten()  # of 1/2
    assert 0.7 < exponents.min() < 0.8
    assert 1.25 < exponents.max() < 1.36
    assert exponents.view(50, 3).std(1).min() > 0  # each channel has its own


def test_zooms_keep_the_middle_and_differ_by_image():
    across = torch.linspace(-1, 1, 33).expand(20, 1, 33, 33).contiguous()
    out = zoomed(across, torch.arange(20), 0.2, seed=0, epoch=1)
    assert out[:, 0, 16, 16].abs().max() < 1e-5
    slopes = (out[:, 0, 16, 20] - out[:, 0, 16, 12]) / (across[0, 0, 16, 20] - across[0, 0, 16, 12])
    assert 0.81 < slopes.min() < 0.9
    assert 1.1 < slopes.max() < 1.23
