"""Gradients of `compat.lucidrains.VectorQuantize` where the input itself needs none."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch
from helpers.drop_ins import assert_near, assert_same_step

from vqvae2_fast.compat.lucidrains import ResidualVQ, VectorQuantize

STRAIGHT_THROUGH = {"straight_through": True, "rotation_trick": False}


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
    arguments = {"codebook_dim": 4} | STRAIGHT_THROUGH | arguments
    gradients = []
    for module in pair(**arguments):
        torch.manual_seed(1)
        module(torch.randn(2, 16, 8))[0].square().sum().backward()
        gradients.append(module.project_in.weight.grad)
    assert gradients[0].abs().max() > 0
    assert_near(gradients[1], gradients[0], "gradient of project_in")


@pytest.mark.parametrize(
    "arguments", [{}, {"codebook_dim": 4}, {"use_cosine_sim": True}, {"sample_codebook_temp": 0.3}]
)
def test_straight_through_reaches_an_input_past_which_no_gradient_is_routed(arguments):
    arguments = STRAIGHT_THROUGH | {"route_gradients_to_input": False} | arguments
    theirs, ours = pair(**arguments)
    for seed in range(2):
        assert_same_step(theirs, ours, torch.randn(2, 16, 8), seed)


def test_layers_route_no_gradient_past_their_straight_through_search():
    modules = []
    for source in (vector_quantize_pytorch.ResidualVQ, ResidualVQ):
        torch.manual_seed(0)
        made = source(
            dim=8,
            codebook_size=12,
            num_quantizers=3,
            route_gradients_to_input=False,
            **STRAIGHT_THROUGH,
        )
        modules.append(made)
    assert_same_step(*modules, torch.randn(2, 16, 8), seed=0)


@pytest.mark.parametrize("arguments", [{}, {"codebook_dim": 4}, {"use_cosine_sim": True}])
def test_an_in_place_optimiser_moves_straight_through_codes_of_an_input_with_a_gradient(arguments):
    def sgd(weights):
        return torch.optim.SGD(weights, lr=1.0)

    arguments = STRAIGHT_THROUGH | {"orthogonal_reg_weight": 0.1} | arguments
    theirs, ours = pair(in_place_codebook_optimizer=sgd, **arguments)
    for _ in range(3):
        x = torch.randn(2, 16, 8, requires_grad=True)
        theirs(x)
        quantized, _, loss = ours(x)
        assert_near(ours._codebook.embed, theirs._codebook.embed, "codes")
        (quantized.sum() + loss).backward()  # the graph of x is still there
        ours.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_straight_through_trains_in_other_dtypes(dtype):
    gradients = []
    for module in pair(codebook_dim=4, **STRAIGHT_THROUGH):
        torch.manual_seed(1)
        module.to(dtype)(torch.randn(2, 16, 8).to(dtype))[0].square().sum().backward()
        gradients.append(module.project_in.weight.grad)
    assert_near(gradients[1], gradients[0], "gradient of project_in", tolerance=1e-2)


def test_topk_has_no_straight_through_gradient():
    """The package raises a bare error too, but for topk=1."""
    module = VectorQuantize(8, 12, **STRAIGHT_THROUGH)
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
