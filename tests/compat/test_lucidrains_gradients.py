"""Gradients of `compat.lucidrains.VectorQuantize` to its codebook."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch
from helpers.drop_ins import assert_near

from vqvae2_fast.compat.lucidrains import VectorQuantize


def pair(**arguments):
    modules = []
    for source in (vector_quantize_pytorch.VectorQuantize, VectorQuantize):
        torch.manual_seed(0)
        modules.append(source(8, 12, **arguments))
    return modules


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
