"""Rate and quality of image codecs."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.metrics import CODECS, CodecCurve, CodecPoint, codec_at_bits


def curve(codec: str, images: torch.Tensor, *qualities: int) -> list[CodecPoint]:
    found = CodecCurve(CODECS[codec], qualities)
    found.add(images)
    return found.points()


def blocks() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return images.repeat_interleave(8, 2).repeat_interleave(8, 3)  # blocks of 8x8


@pytest.mark.parametrize("codec", CODECS)
def test_quality_and_rate_rise_together(codec):
    low, middle, high = curve(codec, blocks(), 5, 50, 95)
    assert [point.quality for point in (low, middle, high)] == [5, 50, 95]
    assert low.bits_per_image < middle.bits_per_image < high.bits_per_image
    assert low.psnr < middle.psnr < high.psnr


@pytest.mark.parametrize("codec", CODECS)
def test_the_batches_do_not_matter(codec):
    found = CodecCurve(CODECS[codec], (30,))
    found.add(blocks()[:1])
    found.add(blocks()[1:1])
    found.add(blocks()[1:])
    assert found.points() == curve(codec, blocks(), 30)


@pytest.mark.parametrize("codec", CODECS)
def test_grey_images_are_measured_as_grey(codec):
    (point,) = curve(codec, torch.full((1, 1, 16, 16), 77, dtype=torch.uint8), 100)
    assert point.psnr > 40


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one image, got none"):
        CodecCurve(CODECS["webp"]).points()


def test_quality_at_a_rate_lies_between_its_neighbours():
    points = [CodecPoint(0, 100.0, 20.0), CodecPoint(50, 300.0, 30.0)]
    assert codec_at_bits(points, 150) == pytest.approx(22.5)
    assert codec_at_bits(points[::-1], 150) == pytest.approx(22.5)
    assert codec_at_bits(points, 300) == 30
    assert codec_at_bits(points, 1000) == 30
    assert codec_at_bits(points, 99) is None
