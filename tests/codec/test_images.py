"""Images to bytes and back: any size, by tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.models import tiny_pipeline

from vqvae2_fast import codec
from vqvae2_fast.codec.bitstream import read_segments, write_segment
from vqvae2_fast.codec.tiles import Tiling
from vqvae2_fast.data import pixels
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.pipeline import Pipeline, decoded

pytestmark = pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline(num_classes=3)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_images_of_the_models_size_decode_to_their_reconstruction(pipeline: Pipeline) -> None:
    given = images(3, 3, 16, 16)
    found = codec.decode_images(pipeline, codec.encode_images(pipeline, given))
    assert torch.equal(found, decoded(pipeline, pipeline.vqvae.encode(given)))


@pytest.mark.parametrize("size", [(16, 32), (40, 23), (7, 50)])
@pytest.mark.parametrize("margins", [True, False])
def test_windows_without_their_margins_are_the_image(
    pipeline: Pipeline, size: tuple[int, int], margins: bool
) -> None:
    given, tiling = images(2, 3, *size), Tiling(pipeline.vqvae, *size, margins)
    windows = torch.cat(list(tiling.windows(given, (16, 16))))
    assert windows.shape[2:] == ((32, 32) if margins else (16, 16))
    whole = tiling.joined(tiling.inner(windows, (16, 16)))
    assert torch.equal(whole[..., : size[0], : size[1]], given)
    if size == (40, 23) and margins:
        # Of the second row's first tile: neighbours on the right, the border again on the left.
        assert torch.equal(windows[2, :, :, 8:31], given[0, :, 8:40])
        assert torch.equal(windows[2, :, :, 0], given[0, :, 8:40, 0])


@pytest.mark.parametrize("size", [(16, 32), (40, 23), (7, 5)])
def test_images_of_any_size_keep_it(pipeline: Pipeline, size: tuple[int, int]) -> None:
    given = images(2, 3, *size)
    data = codec.encode_images(pipeline, given)
    found = codec.decode_images(pipeline, data)
    assert found.shape == given.shape
    second = codec.decode_images(pipeline, codec.encode_images(pipeline, given[1:]))
    torch.testing.assert_close(found[1:], second)


def test_images_of_a_large_segment_come_a_few_at_a_time(pipeline: Pipeline) -> None:
    given = images(23, 3, 16, 80)  # of five tiles each
    parts = list(codec.decode_image_stream(pipeline, codec.encode_images(pipeline, given)))
    assert [len(part) for part in parts] == [12, 11]
    second = codec.decode_images(pipeline, codec.encode_images(pipeline, given[12:]))
    torch.testing.assert_close(parts[1], second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_of_any_floating_type_are_taken(pipeline: Pipeline, dtype: torch.dtype) -> None:
    given = images(2, 3, 16, 16).to(dtype)
    data = codec.encode_images(pipeline, given)
    assert data == codec.encode_images(pipeline, given.float())


def test_a_file_of_larger_images_than_are_decoded_is_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = codec.encode_images(pipeline, images(1, 3, 40, 23))
    monkeypatch.setattr(pixels, "MAX_PIXELS", 919)
    monkeypatch.setattr(Tiling, "decode", lambda *_: pytest.fail("was decoded"))
    told = "at most 919 pixels, the file has some of 40x23, which are 920. To decode them, raise"
    with pytest.raises(ValueError, match=f"expected images of {told}"):
        codec.decode_images(pipeline, data)


def test_images_that_could_not_be_decoded_are_not_encoded(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "MAX_PIXELS", 919)
    with pytest.raises(ValueError, match="expected images of at most 919 pixels"):
        codec.encode_images(pipeline, images(1, 3, 40, 23))


def pattern() -> torch.Tensor:
    """64×64 pixels in which each cell of the coarsest map is alike."""
    return images(1, 3, 4, 4).repeat(1, 1, 16, 16)


def unlike(found: torch.Tensor) -> float:
    """The largest difference of two cells that lie away from the image's border."""
    cells = found[:, :, 16:48, 16:48].unfold(2, 4, 4).unfold(3, 4, 4)
    return float((cells - cells[:, :, 3:4, 3:4]).abs().max())


def test_borders_between_tiles_leave_no_trace(pipeline: Pipeline) -> None:
    data = codec.encode_images(pipeline, pattern())
    assert unlike(codec.decode_images(pipeline, data)) < 1e-3


def test_a_file_without_margins_is_decoded_tile_by_tile(pipeline: Pipeline) -> None:
    """As the first release of the format wrote them."""
    (segment,) = read_segments(codec.encode_images(pipeline, pattern()))
    assert segment.header.margins
    data = write_segment(replace(segment, header=replace(segment.header, margins=False)))
    found = codec.decode_images(pipeline, data)
    first = [maps[:1] for maps in codec.decode_codes(pipeline, data)]
    torch.testing.assert_close(found[:, :, :16, :16], decoded(pipeline, first))
    assert unlike(found) > 0.1


def test_an_image_of_the_models_size_has_no_margins(pipeline: Pipeline) -> None:
    (segment,) = read_segments(codec.encode_images(pipeline, images(1, 3, 16, 16)))
    assert not segment.header.margins


def test_labels_of_images_are_those_of_their_tiles(pipeline: Pipeline) -> None:
    data = codec.encode_images(pipeline, images(2, 3, 16, 32), labels=torch.tensor([2, 1]))
    labels = [label for _, label in codec.decode_stream(pipeline, data)]
    assert torch.cat(labels).tolist() == [2, 2, 1, 1]


def test_labels_of_images_are_taken_as_numbers(pipeline: Pipeline) -> None:
    given = images(2, 3, 16, 32)
    expected = codec.encode_images(pipeline, given, labels=torch.tensor([2, 1]))
    assert codec.encode_images(pipeline, given, labels=[2, 1]) == expected


@pytest.mark.parametrize(
    "given", [None, "0.png", [images(3, 16, 16)], images(1, 3, 16, 16).numpy()]
)
def test_images_that_are_no_tensor_are_refused(pipeline: Pipeline, given) -> None:
    got = f"got a {type(given).__name__}"
    with pytest.raises(TypeError, match=rf"expected images to be a tensor, .*{got}"):
        codec.encode_images(pipeline, given)


@pytest.mark.parametrize("labels", [[1], [[2, 1]]])
def test_labels_that_are_not_one_per_image_are_refused(pipeline: Pipeline, labels: list) -> None:
    given = images(2, 3, 16, 32)
    with pytest.raises(ValueError, match=r"expected labels \[2\], got \[1"):
        codec.encode_images(pipeline, given, labels=torch.tensor(labels))


def test_a_file_of_codes_is_no_file_of_images(pipeline: Pipeline) -> None:
    codes = pipeline.vqvae.encode(images(1, 3, 16, 16))
    told = "expected a file of images, got one of code maps, 1 of each level. Use decode_codes"
    with pytest.raises(ValueError, match=told):
        codec.decode_images(pipeline, codec.encode_codes(pipeline, codes))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 1, 16, 16), r"expected images float \[B, 3, H, W\], got \[1, 1, 16, 16\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"16\] uint8"),
        (torch.zeros(0, 3, 16, 16), "B >= 1"),
        (torch.zeros(1, 3, 0, 16), "sides of 1 to 65535"),
        (torch.arange(3.0 * 256).view(1, 3, 16, 16), r"in \[-1, 1\], got values from 0 to 767"),
        (torch.full((1, 3, 16, 16), torch.nan), r"in \[-1, 1\], got values from nan to nan"),
    ],
)
def test_what_is_no_batch_of_images(pipeline: Pipeline, given: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode_images(pipeline, given)
