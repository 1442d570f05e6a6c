"""Arguments of another type: which function and argument the errors name, and the remedy."""

import pytest
import torch
from helpers.models import tiny_pipeline, tiny_prior
from PIL import Image

from vqvae2_fast.sampling import calibrate, sample_codes, score_codes, teacher_forced_logits

CODES = torch.zeros(2, 4, 6, dtype=torch.int64)
OTHERS = {
    "array": (CODES.numpy(), r"a numpy array: pass torch\.from_numpy\({name}\)"),
    "list": (CODES.tolist(), r"a list: pass torch\.tensor\({name}\)"),
    "tensors": (list(CODES), r"a list of tensors: pass torch\.stack\({name}\)"),
    "number": (7, r"an int\."),
    "image": (Image.new("L", (2, 2)), r"an Image\."),
}


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (sample_codes, [2]),
        (score_codes, [CODES]),
        (teacher_forced_logits, [CODES]),
        (calibrate, [[(CODES, None, None)]]),
    ],
)
def test_a_pipeline_in_place_of_a_prior_is_named(function, arguments):
    message = "^do not know how to draw from a Pipeline. Pass one of pipeline"
    with pytest.raises(TypeError, match=message):
        function(tiny_pipeline(), *arguments)


@pytest.mark.parametrize("function", [score_codes, teacher_forced_logits])
@pytest.mark.parametrize("kind", OTHERS)
def test_codes_that_are_no_tensor_are_named(function, kind):
    codes, found = OTHERS[kind]
    message = f"^expected codes to be a tensor, got {found}"
    with pytest.raises(TypeError, match=message.format(name="codes")):
        function(tiny_prior(), codes)


@pytest.mark.parametrize("name", ["known", "noise"])
@pytest.mark.parametrize("kind", OTHERS)
def test_maps_of_a_draw_that_are_no_tensor_are_named(name, kind):
    value, found = OTHERS[kind]
    message = f"^expected {name} to be a tensor, got {found}".format(name=name)
    with pytest.raises(TypeError, match=message):
        sample_codes(tiny_prior(), 2, **{name: value})


@pytest.mark.parametrize("kind", OTHERS)
def test_a_condition_that_is_no_tensor_is_named(kind):
    prior = tiny_prior(condition_sizes=((2, 3),))
    value, found = OTHERS[kind]
    message = f"^expected condition.* got {found}"
    with pytest.raises(TypeError, match=message.format(name=r"condition\[0\]")):
        sample_codes(prior, 2, condition=[value])
    if kind not in ("list", "tensors"):  # a list is one of maps
        with pytest.raises(TypeError, match=message.format(name="condition")):
            sample_codes(prior, 2, condition=value)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([CODES], r"batches\[0\] to be \(codes, condition, labels\), got a Tensor\. What"),
        (
            torch.stack([CODES] * 3),
            r"batches\[0\] to be \(codes, condition, labels\), got a Tensor",
        ),
        (
            [(CODES, None, None), (CODES, None)],
            r"batches\[1\] to be \(codes, .* got a tuple of 2\. .* \(codes, None, None\)",
        ),
        (None, r"batches to be a list of \(codes, condition, labels\), got None"),
        ([(None, None, None)], "codes to be a tensor, got None"),
    ],
)
def test_batches_to_calibrate_with_are_named(batches, message):
    with pytest.raises(TypeError, match=f"^expected {message}"):
        calibrate(tiny_prior(), batches)


def test_a_margin_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="margin to be None or a finite number >= 1, got 'a'"):
        calibrate(tiny_prior(), [(CODES, None, None)], margin="a")
