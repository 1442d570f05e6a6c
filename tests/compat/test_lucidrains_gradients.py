"""Gradients of `compat.lucidrains.VectorQuantize` where the input itself needs none."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch

from vqvae2_fast.compat.lucidrains import VectorQuantize
from vqvae2_fast.testing.drop_ins import assert_near


def pair(**arguments):
    modules = []
    for source in (vector_quantize_pytorch.VectorQuantize, VectorQuantize):
        torch.manual_seed(0)
        modules.append(source(8, 12, **arguments))
    return modules


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stochastic_sample_codes": True, "sample_codebook_temp": 0.3},
        {"use_cosine_sim": True},
        {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True},
        {"freeze_codebook": True},
    ],
)
def test_straight_through_reaches_the_projection_of_an_input_without_a_gradient(arguments):
    arguments = {"codebook_dim": 4, "straight_through": True, "rotation_trick": False} | arguments
    gradients = []
    for module in pair(**arguments):
        torch.manual_seed(1)
        module(torch.randn(2, 16, 8))[0].square().sum().backward()
        gradients.append(module.project_in.weight.grad)
    assert gradients[0].abs().max() > 0
    assert_near(gradients[1], gradients[0], "gradient of project_in")


def test_topk_has_no_straight_through_gradient():
    """The package raises a bare error too."""
    module = VectorQuantize(8, 12, straight_through=True, rotation_trick=False)
    with pytest.raises(ValueError, match=r"without .* straight_through"):
        module(torch.randn(2, 4, 8), topk=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"orthogonal_reg_weight": 0.1},
        {"learnable_codebook": True, "ema_update": False, "freeze_codebook": True},
    ],
)
def test_topk_losses_of_evaluation_reach_a_codebook_that_is_a_parameter(arguments):
    gradients = []
    for module in pair(**arguments):
        torch.manual_seed(1)
        module.eval()(torch.randn(2, 4, 8), topk=2)[2].sum().backward()
        gradients.append(module._codebook.embed.grad)
    assert_near(gradients[1], gradients[0], "gradient of the codebook")
