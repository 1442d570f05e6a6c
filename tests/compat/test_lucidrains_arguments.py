"""Arguments that `compat.lucidrains.VectorQuantize` refuses, and all that it knows."""

from __future__ import annotations

import inspect

import pytest
import torch
import vector_quantize_pytorch

from vqvae2_fast.compat.lucidrains import VectorQuantize

SEQUENCE, NUM_CODES = (2, 9, 12), 20
LEARNABLE = {"learnable_codebook": True, "ema_update": False}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("affine_param", True),
        ("straight_through", True),
        ("sync_update_v", 0.5),
        ("vq_bridge", torch.nn.Identity()),
    ],
)
def test_other_arguments_are_refused_by_name(name, value):
    with pytest.raises(NotImplementedError, match=f"^{name} is not supported"):
        VectorQuantize(12, NUM_CODES, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("codebook_transform_fn", torch.nn.Identity()),
        ("accum_ema_update", True),
        ("ema_update_weight", torch.ones(20)),
    ],
)
def test_other_arguments_of_forward_are_refused_by_name(name, value):
    with pytest.raises(NotImplementedError, match=f"^{name} is not supported"):
        VectorQuantize(12, NUM_CODES)(torch.randn(SEQUENCE), **{name: value})


def test_every_argument_of_the_package_is_known():
    theirs = inspect.signature(vector_quantize_pytorch.VectorQuantize).parameters
    for name, parameter in theirs.items():
        if parameter.default is not inspect.Parameter.empty:
            VectorQuantize(12, NUM_CODES, **{name: parameter.default})


def test_arguments_have_the_defaults_of_the_package():
    theirs = inspect.signature(vector_quantize_pytorch.VectorQuantize).parameters
    ours = inspect.signature(VectorQuantize).parameters
    shared = ours.keys() & theirs.keys()
    assert {name: ours[name].default for name in shared} == {
        name: theirs[name].default for name in shared
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learnable_codebook": True}, "ema_update=False with learnable_codebook=True"),
        (LEARNABLE | {"use_cosine_sim": True}, "use_cosine_sim=False with learnable_codebook"),
        ({"directional_reparam": True}, "threshold_ema_dead_code > 0"),
    ],
)
def test_arguments_that_exclude_one_another_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantize(12, NUM_CODES, **arguments)


def test_mask_and_lens_together_are_refused():
    with pytest.raises(ValueError, match="mask or lens, got both"):
        VectorQuantize(12, NUM_CODES)(
            torch.randn(SEQUENCE), mask=torch.ones(2, 9).bool(), lens=torch.tensor([1, 2])
        )


def test_synchronising_without_a_process_group_is_refused():
    with pytest.raises(RuntimeError, match="there is no process group"):
        VectorQuantize(12, NUM_CODES, sync_codebook=True)(torch.randn(SEQUENCE))


@pytest.mark.parametrize(
    ("arguments", "x_shape", "shape", "expected"),
    [
        ({}, SEQUENCE, (9, 2), r"indices \[2, 9\] for x \[2, 9, 12\], got \[9, 2\]"),
        ({}, SEQUENCE, (2, 8), r"indices \[2, 9\]"),
        ({}, (2, 12), (2, 1), r"indices \[2\]"),
        ({"accept_image_fmap": True}, (2, 12, 3, 4), (2, 12), r"indices \[2, 3, 4\]"),
        ({"heads": 2}, SEQUENCE, (2, 2, 9), r"indices \[2, 9, 2\]"),
    ],
)
def test_indices_of_another_shape_are_refused(arguments, x_shape, shape, expected):
    module, x = VectorQuantize(12, NUM_CODES, **arguments), torch.randn(x_shape)
    indices = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=expected):
        module(x, indices=indices)
    with pytest.raises(ValueError, match=expected):
        module.update_indices(x, indices)
