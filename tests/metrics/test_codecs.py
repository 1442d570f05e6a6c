"""Rate and quality of image codecs."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from vqvae2_fast.metrics import CODECS, CodecCurve, CodecPoint, codec_at_bits
from vqvae2_fast.metrics.reconstruction import Reconstruction

PRESENT = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(not codec.available(), reason=f"no {codec.name} in Pillow"),
    )
    for name, codec in CODECS.items()
]


def curve(codec: str, images: torch.Tensor, *qualities: int) -> list[CodecPoint]:
    found = CodecCurve(CODECS[codec], qualities)
    found.add(images)
    return found.points()


def blocks() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return images.repeat_interleave(8, 2).repeat_interleave(8, 3)  # blocks of 8x8


@pytest.mark.parametrize("codec", PRESENT)
def test_quality_and_rate_rise_together(codec):
    low, middle, high = curve(codec, blocks(), 5, 50, 95)
    assert [point.quality for point in (low, middle, high)] == [5, 50, 95]
    assert low.bits_per_image < middle.bits_per_image < high.bits_per_image
    assert low.psnr < middle.psnr < high.psnr


@pytest.mark.parametrize("codec", PRESENT)
def test_the_batches_do_not_matter(codec):
    found = CodecCurve(CODECS[codec], (30,))
    found.add(blocks()[:1])
    found.add(blocks()[1:1])
    found.add(blocks()[1:])
    (one,), (other,) = found.points(), curve(codec, blocks(), 30)
    assert one.file_bits_per_image == other.file_bits_per_image
    assert one.measured.psnr == pytest.approx(other.measured.psnr)
    assert one.measured.ssim == pytest.approx(other.measured.ssim)


@pytest.mark.parametrize("codec", PRESENT)
def test_threads_do_not_matter(codec, with_threads):
    images = blocks().repeat(1, 1, 2, 2)  # large enough for threads with every codec
    one, other = (with_threads(count, lambda: curve(codec, images, 30, 60)) for count in (1, 2))
    assert one == other


@pytest.mark.parametrize("codec", PRESENT)
def test_bits_are_those_of_the_file_without_its_headers(codec):
    (point,) = curve(codec, blocks()[:1], 50)
    stream = io.BytesIO()
    image = Image.fromarray(blocks()[0].permute(1, 2, 0).numpy())
    image.save(stream, quality=50, **CODECS[codec].options)
    size = 8 * len(stream.getvalue())
    assert point.file_bits_per_image == size
    assert 0.05 * size < point.bits_per_image <= size
    assert (point.bits_per_image == size) == (CODECS[codec].counted == "whole files")


def test_a_format_that_pillow_lacks_is_not_available():
    assert not replace(CODECS["webp"], options={"format": "NONE"}).available()
    assert not replace(CODECS["jxl"], options={"format": "NONE"}, plugin="no_module").available()


@pytest.mark.parametrize("codec", PRESENT)
def test_grey_images_are_measured_as_grey(codec):
    best = CODECS[codec].qualities[-1]
    (point,) = curve(codec, torch.full((1, 1, 16, 16), 77, dtype=torch.uint8), best)
    assert point.psnr > 40


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one image, got none"):
        CodecCurve(CODECS["webp"]).points()


def test_quality_at_a_rate_lies_between_its_neighbours():
    points = [
        CodecPoint(quality, bits, bits + 160, Reconstruction(0.1, 0.025, psnr))
        for quality, bits, psnr in ((0, 100.0, 20.0), (50, 300.0, 30.0))
    ]
    assert codec_at_bits(points, 150) == pytest.approx(22.5)
    assert codec_at_bits(points[::-1], 150) == pytest.approx(22.5)
    assert codec_at_bits(points, 300) == 30
    assert codec_at_bits(points, 1000) == 30
    assert codec_at_bits(points, 99) is None
    assert codec_at_bits(points, 150, "mse") == pytest.approx(0.1)
    assert codec_at_bits(points, 150, "lpips") is None
