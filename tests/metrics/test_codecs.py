"""WebP's rate and quality."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.metrics import CodecPoint, webp_at_bits, webp_curve


def test_quality_and_rate_rise_together():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
    images = images.repeat_interleave(8, 2).repeat_interleave(8, 3)  # blocks of 8x8
    curve = webp_curve(images, (5, 50, 95))
    assert [p.quality for p in curve] == [5, 50, 95]
    assert curve[0].bits_per_image < curve[1].bits_per_image < curve[2].bits_per_image
    assert curve[0].psnr < curve[1].psnr < curve[2].psnr


def test_grey_images_are_measured_as_grey():
    images = torch.full((1, 1, 16, 16), 77, dtype=torch.uint8)
    (point,) = webp_curve(images, (100,))
    assert point.psnr > 40


def test_quality_at_a_rate_lies_between_its_neighbours():
    curve = [CodecPoint(0, 100.0, 20.0), CodecPoint(50, 300.0, 30.0)]
    assert webp_at_bits(curve, 150) == pytest.approx(22.5)
    assert webp_at_bits(curve[::-1], 150) == pytest.approx(22.5)
    assert webp_at_bits(curve, 300) == 30
    assert webp_at_bits(curve, 1000) == 30
    assert webp_at_bits(curve, 99) is None
