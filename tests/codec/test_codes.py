"""Code maps to bytes and back: exact for every batch, thread count and SIMD level, near the prior's
bits, and refused where they do not fit."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.compare import simd_level, simd_levels
from helpers.models import tiny_pipeline

from vqvae2_fast import codec
from vqvae2_fast.codec.engine import check_engine
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import sample_codes, score_codes
from vqvae2_fast.sampling.engines.cpu import cpu_plan_of
from vqvae2_fast.sampling.prior import interface_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor

    from vqvae2_fast.sampling.pipeline import Pipeline

pytestmark = pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline(num_classes=3)


def some_codes(pipeline: Pipeline, batch: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(seed)
    config = pipeline.vqvae.config
    codes = [torch.randint(config.num_embeddings, (batch, *s)) for s in config.level_sizes]
    return codes, torch.randint(pipeline.num_classes + 1, (batch,))


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for level, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"level {level}"


@pytest.mark.parametrize("batch", [1, 3, 65])
@pytest.mark.parametrize("labelled", [True, False])
def test_codes_come_back(pipeline: Pipeline, batch: int, labelled: bool) -> None:
    codes, labels = some_codes(pipeline, batch)
    data = codec.encode_codes(pipeline, codes, labels=labels if labelled else None)
    assert_equal(codec.decode_codes(pipeline, data), codes)


def test_weights_are_packed_once_for_coding_and_drawing(pipeline: Pipeline) -> None:
    prior = pipeline.priors[1]
    assert codec.codes.Coder.of(pipeline).plan(1) is cpu_plan_of(prior, interface_of(prior))


def test_labels_come_back(pipeline: Pipeline) -> None:
    codes, labels = some_codes(pipeline, 5)
    parts = codec.decode_stream(pipeline, codec.encode_codes(pipeline, codes, labels=labels))
    assert torch.equal(next(parts)[1], labels)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_any_batch_decodes(pipeline: Pipeline, batch_size: int) -> None:
    codes, labels = some_codes(pipeline, 7)
    data = codec.encode_codes(pipeline, codes, labels=labels)
    parts = list(codec.decode_stream(pipeline, data, batch_size=batch_size))
    assert_equal(
        [torch.cat(level) for level in zip(*[maps for maps, _ in parts], strict=True)], codes
    )


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_a_batch_without_images_is_refused(pipeline: Pipeline, batch_size: int) -> None:
    data = codec.encode_codes(pipeline, some_codes(pipeline, 2)[0])
    with pytest.raises(ValueError, match="expected batch_size to be an integer"):
        next(codec.decode_stream(pipeline, data, batch_size=batch_size))


def test_any_number_of_threads_decodes(
    pipeline: Pipeline, with_threads: Callable[[int, Callable[[], object]], object]
) -> None:
    codes, labels = some_codes(pipeline, 5)
    files = [
        with_threads(n, lambda: codec.encode_codes(pipeline, codes, labels=labels)) for n in (1, 3)
    ]
    assert files[0] == files[1]
    for threads in (1, 2, 5):
        found = with_threads(threads, lambda: codec.decode_codes(pipeline, files[0]))
        assert_equal(found, codes)


def test_any_rounding_mode_decodes(
    pipeline: Pipeline, other_rounding: Callable[[], AbstractContextManager[None]]
) -> None:
    codes, labels = some_codes(pipeline, 2)
    data = codec.encode_codes(pipeline, codes, labels=labels)
    # Their weights have not been folded yet.
    encoder, decoder = tiny_pipeline(num_classes=3), tiny_pipeline(num_classes=3)
    with other_rounding():
        assert codec.encode_codes(encoder, codes, labels=labels) == data
        assert_equal(codec.decode_codes(decoder, data), codes)


def test_bytes_of_an_image_do_not_depend_on_its_batch(pipeline: Pipeline) -> None:
    codes, _ = some_codes(pipeline, 6)
    whole = codec.bitstream.read_segments(codec.encode_codes(pipeline, codes))
    alone = codec.encode_codes(pipeline, [maps[2:3] for maps in codes])
    streams = next(codec.bitstream.read_segments(alone)).streams
    assert [level[2] for level in next(whole).streams] == [level[0] for level in streams]


def test_size_is_what_the_priors_promise(pipeline: Pipeline) -> None:
    """For codes that the priors drew, at most 0.1 % and 64 bits per level and image."""
    batch, labels = 40, torch.zeros(40, dtype=torch.int64)
    maps: list[Tensor] = []
    for level, prior in enumerate(pipeline.priors):
        maps.append(sample_codes(prior, batch, condition=maps, labels=labels, stream=level))
    found = codec.describe(codec.encode_codes(pipeline, maps, labels=labels))
    for level, prior in enumerate(pipeline.priors):
        nats = -score_codes(prior, maps[level], maps[:level], labels).double().sum().item()
        bits = nats / math.log(2)
        assert bits - 1 <= found.payload_bits[level] <= 1.001 * bits + 64 * batch


def test_coarse_levels_alone(pipeline: Pipeline) -> None:
    codes, labels = some_codes(pipeline, 3)
    data = codec.encode_codes(pipeline, codes, labels=labels, levels=1, seed=5)
    top, bottom = codec.decode_codes(pipeline, data)
    assert torch.equal(top, codes[0])
    drawn = sample_codes(pipeline.priors[1], 3, condition=[top], labels=labels, seed=5, stream=1)
    assert torch.equal(bottom, drawn)


def test_a_file_cut_after_a_level_decodes_from_there(pipeline: Pipeline) -> None:
    codes, labels = some_codes(pipeline, 3)
    data = codec.encode_codes(pipeline, codes, labels=labels)
    bottom = int.from_bytes(data[40:44], "little")
    cut = data[:-bottom]
    assert codec.describe(cut).missing_levels == 1
    assert torch.equal(codec.decode_codes(pipeline, cut)[0], codes[0])


def test_segments_follow_one_another(pipeline: Pipeline) -> None:
    batches = [some_codes(pipeline, n, seed=n) for n in (2, 5, 1)]
    data = b"".join(codec.encode_stream(pipeline, batches))
    assert codec.describe(data).segments == 3
    expected = [torch.cat(level) for level in zip(*[maps for maps, _ in batches], strict=True)]
    assert_equal(codec.decode_codes(pipeline, data), expected)


@pytest.mark.parametrize("level", simd_levels())
def test_every_simd_level_writes_the_same_file_and_reads_it(pipeline: Pipeline, level: str) -> None:
    codes, labels = some_codes(pipeline, 9)
    with simd_level("scalar"):
        expected = codec.encode_codes(pipeline, codes, labels=labels)
    with simd_level(level):
        assert codec.encode_codes(pipeline, codes, labels=labels) == expected
        assert_equal(codec.decode_codes(pipeline, expected), codes)


def test_a_file_is_read_whole_from_what_gives_few_bytes_at_a_time(pipeline: Pipeline) -> None:
    codes, _ = some_codes(pipeline, 2)

    class Pipe(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 7))

    data = codec.encode_codes(pipeline, codes)
    assert_equal(
        codec.decode_codes(pipeline, Pipe(data + data)),
        [codes[0].repeat(2, 1, 1), codes[1].repeat(2, 1, 1)],
    )


@pytest.mark.parametrize("argument", [{"levels": 0}, {"levels": 1.0}, {"seed": -1}, {"seed": 0.5}])
def test_a_number_that_is_none_is_named(pipeline: Pipeline, argument: dict[str, int]) -> None:
    (name,) = argument
    with pytest.raises(ValueError, match=f"expected {name} to be an integer from"):
        codec.encode_codes(pipeline, some_codes(pipeline, 1)[0], **argument)


@pytest.mark.parametrize("level", [0, 1])
def test_maps_that_do_not_fit_are_named_by_the_argument(pipeline: Pipeline, level: int) -> None:
    codes, _ = some_codes(pipeline, 2)
    codes[level] = codes[level][:, 1:]
    with pytest.raises(ValueError, match=rf"expected codes\[{level}\] \[2, "):
        codec.encode_codes(pipeline, codes)


@pytest.mark.parametrize("levels", [None, 1])
def test_maps_beyond_the_levels_of_the_pipeline_are_refused(
    pipeline: Pipeline, levels: int | None
) -> None:
    codes, _ = some_codes(pipeline, 2)
    with pytest.raises(ValueError, match="expected codes to be at most 2 maps, .* 3"):
        codec.encode_codes(pipeline, [*codes, codes[1]], levels=levels)


def test_priors_elsewhere_are_refused_with_the_remedy() -> None:
    prior = tiny_pipeline(num_classes=3).priors[0].to("meta")
    with pytest.raises(RuntimeError, match=r"the prior is on meta\. Move .* with device=cpu\.$"):
        check_engine(prior, "cpu")


@pytest.mark.parametrize(
    "labels", [[2, 1, 3], ["cow", "c", None], torch.tensor([2, 1, 3]).numpy()], ids=str
)
def test_labels_are_numbers_or_names_as_in_sample_images(labels) -> None:
    pipeline = replace(tiny_pipeline(num_classes=3), class_names=("ant", "c", "cow"))
    codes, _ = some_codes(pipeline, 3)
    expected = codec.encode_codes(pipeline, codes, labels=torch.tensor([2, 1, 3]))
    assert codec.encode_codes(pipeline, codes, labels=labels) == expected
    assert list(codec.encode_stream(pipeline, [(codes, labels)])) == [expected]


@pytest.mark.parametrize("labels", ["cow", 3])
def test_a_label_that_is_no_list_is_refused(pipeline: Pipeline, labels) -> None:
    told = f"expected labels to be a list, one per sample, got {labels!r}"
    with pytest.raises(ValueError, match=told):
        codec.encode_codes(pipeline, some_codes(pipeline, 3)[0], labels=labels)


@pytest.mark.parametrize(
    ("codes", "got"),
    [
        (None, "a NoneType"),
        ([None, [1]], "a list of NoneType, list"),
        ((torch.zeros(1, 4, 4).numpy(),), "a tuple of ndarray"),
    ],
)
def test_codes_that_are_no_tensors_are_refused(pipeline: Pipeline, codes, got: str) -> None:
    with pytest.raises(TypeError, match=f"expected codes to be .*, got {got}\\."):
        codec.encode_codes(pipeline, codes)


@pytest.mark.parametrize(
    "function",
    ["encode_codes", "encode_images", "encode_stream", "decode_codes", "decode_images"],
)
def test_a_model_in_the_place_of_the_pipeline_is_refused(pipeline: Pipeline, function: str) -> None:
    encodes = function.startswith("encode")
    given = [] if encodes else codec.encode_codes(pipeline, some_codes(pipeline, 1)[0])
    with pytest.raises(TypeError, match="expected a Pipeline, got a VQVAE2"):
        list(getattr(codec, function)(pipeline.vqvae, given))
