"""Limits of `FSQ`, `LFQ` and other small classes of `compat.lucidrains`, and their messages."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as package
from helpers.drop_ins import assert_near, assert_same_step

from vqvae2_fast.compat import lucidrains


@pytest.mark.parametrize(
    ("levels", "dim"), [([8] * 12, None), ([5] * 16, 64), ([5] * 40, None)], ids=str
)
def test_a_grid_without_indices_may_be_larger_than_integers(levels, dim):
    modules = []
    for source in (package, lucidrains):
        torch.manual_seed(0)
        modules.append(source.FSQ(levels, dim=dim, return_indices=False))
    x = torch.randn(2, 5, dim or len(levels), generator=torch.Generator().manual_seed(1))
    assert_same_step(*modules, x, seed=0)


def test_indices_that_a_grid_is_too_large_for_are_refused():
    levels = [8] * 12
    with pytest.raises(ValueError, match=r"product of at most 2\*\*31.*return_indices=False"):
        lucidrains.FSQ(levels)
    module = lucidrains.FSQ(levels, return_indices=False)
    for call in (
        lambda: module.codes_to_indices(torch.zeros(2, 12)),
        lambda: module.indices_to_codes(torch.zeros(2, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match="at most 2\\*\\*31 for indices"):
            call()


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "grad_of_grad"])
def test_lfq_trains_inside_functional_transforms(transform):
    results = []
    x, direction = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(1)).double()
    for source in (package, lucidrains):
        torch.manual_seed(0)
        module = source.LFQ(codebook_size=64, dim=4, force_quantization_f32=False).double()

        def loss(z, module=module):
            return module(z, inv_temperature=1.0)[2]

        grad = torch.func.grad(loss)
        run = {
            "grad": lambda grad=grad: grad(x),
            "vmap": lambda grad=grad: torch.func.vmap(grad)(x[:, None]),
            "jvp": lambda loss=loss: torch.func.jvp(loss, (x,), (direction,)),
            "grad_of_grad": lambda grad=grad: torch.func.grad(lambda z: grad(z).square().sum())(x),
        }
        results.append(run[transform]())
    assert_near(results[1], results[0], transform)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_gives_no_codes_is_refused(scale):
    with pytest.raises(ValueError, match="expected codebook_scale .* > 0"):
        lucidrains.LFQ(codebook_size=16, codebook_scale=scale)


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (0, 8, 4, 4)], ids=str)
def test_lfq_of_no_vectors_has_no_loss(shape):
    """The package's is NaN."""
    module = lucidrains.LFQ(codebook_size=16, dim=8, commitment_loss_weight=1.0)
    quantized, indices, loss = module(torch.zeros(shape))
    assert quantized.shape == shape
    assert indices.numel() == 0
    assert loss == 0


def test_lfq_whose_mask_takes_no_vector_has_no_loss():
    """The package's is NaN."""
    module = lucidrains.LFQ(dim=4, commitment_loss_weight=1.0)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    assert module(torch.randn(2, 5, 4), mask=mask)[2] == 0


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("name", ["SimVQ", "ResidualSimVQ"])
def test_sim_vq_returns_the_dtype_of_its_input(name, rotates):
    """The package cannot search in half precision on a CPU."""
    several = {"num_quantizers": 2} if name == "ResidualSimVQ" else {}
    module = getattr(lucidrains, name)(dim=8, codebook_size=12, rotation_trick=rotates, **several)
    assert module(torch.randn(2, 5, 8).bfloat16())[0].dtype == torch.bfloat16


def test_another_eps_of_the_bound_is_refused():
    with pytest.raises(ValueError, match="expected eps=0.001, which is fixed, got 0.01"):
        lucidrains.FSQ([8, 5, 4]).bound(torch.zeros(2, 3), 1e-2)
