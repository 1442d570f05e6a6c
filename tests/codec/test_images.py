"""Images to bytes and back: any size, by tiles."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast import codec
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.pipeline import Pipeline, decoded
from vqvae2_fast.testing.pipelines import tiny_pipeline

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


@pytest.mark.parametrize("size", [(16, 32), (40, 23), (7, 5)])
def test_other_sizes_are_cut_into_tiles(pipeline: Pipeline, size: tuple[int, int]) -> None:
    given = images(2, 3, *size)
    found = codec.decode_images(pipeline, codec.encode_images(pipeline, given))
    assert found.shape == given.shape
    rows, columns = min(16, size[0]), min(16, size[1])
    first = codec.decode_images(
        pipeline, codec.encode_images(pipeline, given[:, :, :rows, :columns])
    )
    torch.testing.assert_close(found[:, :, :rows, :columns], first)


def test_the_last_tile_stands_at_its_place(pipeline: Pipeline) -> None:
    given = images(1, 3, 32, 48)
    found = codec.decode_images(pipeline, codec.encode_images(pipeline, given))
    last = codec.decode_images(pipeline, codec.encode_images(pipeline, given[:, :, 16:, 32:]))
    torch.testing.assert_close(found[:, :, 16:, 32:], last)


def test_labels_of_images_are_those_of_their_tiles(pipeline: Pipeline) -> None:
    data = codec.encode_images(pipeline, images(2, 3, 16, 32), labels=torch.tensor([2, 1]))
    labels = [label for _, label in codec.decode_stream(pipeline, data)]
    assert torch.cat(labels).tolist() == [2, 2, 1, 1]


def test_a_file_of_codes_is_no_file_of_images(pipeline: Pipeline) -> None:
    codes = pipeline.vqvae.encode(images(1, 3, 16, 16))
    with pytest.raises(ValueError, match="expected a file of images"):
        codec.decode_images(pipeline, codec.encode_codes(pipeline, codes))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 1, 16, 16), r"expected images float \[B, 3, H, W\], got \[1, 1, 16, 16\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(0, 3, 16, 16), "B >= 1"),
        (torch.zeros(1, 3, 0, 16), "sides of 1 to 65535"),
    ],
)
def test_what_is_no_batch_of_images(pipeline: Pipeline, given: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode_images(pipeline, given)
