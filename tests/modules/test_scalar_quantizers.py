"""FSQ, ResidualFSQ, LFQ and BSQ against the formulas of their papers in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import vqvae2_fast as vq2
from vqvae2_fast.modules.binary import entropy_of_bits, mean_of_codes, tables_of_bits
from vqvae2_fast.modules.fsq import Grid, digits_to_values
from vqvae2_fast.ops import scalar_quantize


def paper_values(z: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The values of `scalar_quantize` by its formula, one number at a time."""
    columns = []
    for x, levels in zip(z.double().unbind(-1), grid.levels, strict=True):
        if grid.symmetric:
            bounded = x.clamp(-1, 1) if grid.hard else x.tanh()
            digit = ((levels - 1) * (bounded + 1) / 2 + 0.5).floor()
            columns.append(2 / (levels - 1) * digit - 1)
            continue
        half = (levels - 1) * 1.001 / 2
        offset = 0.5 if levels % 2 == 0 else 0.0
        ratio = torch.tensor(offset / half, dtype=torch.float64)
        shifted = x + (ratio if grid.hard else ratio.atanh())
        bounded = shifted.clamp(-1, 1) if grid.hard else shifted.tanh()
        columns.append((bounded * half - offset).round() / (levels // 2))
    return torch.stack(columns, dim=-1)


GRIDS = [
    Grid((8, 5, 3)),
    Grid((8, 5, 3), hard=True),
    Grid((8, 5, 2), symmetric=True),
    Grid((8, 5, 2), symmetric=True, hard=True),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("count", [1, 7, 1000, 1536])
def test_values_are_those_of_the_paper(grid, count):
    z = torch.randn(count, 3, generator=torch.Generator().manual_seed(count)) * 2
    values, indices = scalar_quantize(z, *grid)
    torch.testing.assert_close(values.double(), paper_values(z, grid), rtol=1e-6, atol=1e-6)
    digits = torch.stack([indices % 8, indices // 8 % 5, indices // 40], dim=-1)
    assert torch.equal(digits_to_values(grid, digits, torch.float32), values)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_code_is_reached(grid):
    z = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0)) * 2
    levels = torch.tensor(grid.levels)
    assert len(scalar_quantize(z, *grid)[1].unique()) == levels.prod()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_gradient_is_that_of_the_bound(grid):
    z = torch.randn(64, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(64, 3, dtype=torch.float64)
    (scalar_quantize(z, *grid)[0] * weight).sum().backward()
    other = z.detach().clone().requires_grad_()
    levels = torch.tensor(grid.levels, dtype=torch.float64)
    half = (levels - 1) * 1.001 / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    if grid.symmetric:
        bounded = other.clamp(-1, 1) if grid.hard else other.tanh()
    else:
        shifted = other + (offset / half if grid.hard else (offset / half).atanh())
        bounded = (shifted.clamp(-1, 1) if grid.hard else shifted.tanh()) * half
        bounded = bounded / levels.div(2, rounding_mode="floor")
    (bounded * weight).sum().backward()
    torch.testing.assert_close(z.grad, other.grad)


def test_residual_fsq_is_a_loop_of_finer_grids():
    quantizer = vq2.ResidualFSQ([4, 3], 3).double()
    z = torch.randn(200, 2, dtype=torch.float64)
    levels = torch.tensor([4.0, 3.0], dtype=torch.float64)
    bound = 1 + 1 / (levels - 1)
    residual = bound * (z / bound).tanh()
    total = torch.zeros_like(z)
    for number in range(3):
        scale = levels**-number
        code = scale * paper_values(residual / scale, quantizer.grid)
        residual, total = residual - code, total + code
    torch.testing.assert_close(quantizer(z)[0], total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_grids_of_residual_fsq_do_not_change_with_the_type_of_the_module(dtype):
    quantizer = vq2.ResidualFSQ([8, 7, 6, 3], 3)
    z = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    expected = quantizer(z)
    for changed in (quantizer.to(dtype), quantizer.float()):
        assert torch.equal(changed(z)[0], expected[0])
        assert torch.equal(changed.lookup(expected[1]), expected[0])


def test_residual_fsq_looks_up_in_bfloat16_what_it_returned():
    torch.manual_seed(0)
    quantizer = vq2.ResidualFSQ([8, 7, 6, 3], 3, embedding_dim=16).bfloat16()
    z_q, indices, _ = quantizer(torch.randn(100, 16).bfloat16())
    assert torch.equal(quantizer.lookup(indices), z_q)


class NoHostTensors(TorchDispatchMode):
    """Fails where a tensor is made of numbers on the host: on a GPU that ends a graph's capture."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "quantizer", [vq2.FSQ([8, 5, 4]), vq2.ResidualFSQ([4, 3], 3)], ids=["fsq", "residual_fsq"]
)
def test_a_look_up_copies_nothing_from_the_host(quantizer):
    z_q, indices, _ = quantizer(torch.randn(7, len(quantizer.grid.levels)))
    with NoHostTensors():
        found = quantizer.lookup(indices)
    torch.testing.assert_close(found, z_q)


def test_fsq_can_be_differentiated_twice():
    z = torch.randn(6, 3, requires_grad=True, dtype=torch.float64)
    quantizer, weight = vq2.FSQ([8, 5, 4]), torch.randn(6, 3, dtype=torch.float64)
    (first,) = torch.autograd.grad((quantizer(z)[0] * weight).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    levels = torch.tensor([8, 5, 4], dtype=torch.float64)
    half = (levels - 1) * 1.001 / 2
    bounded = (z + (torch.tensor([0.5, 0, 0.5]) / half).atanh()).tanh()
    slope = 1 - bounded.square()
    torch.testing.assert_close(second, -2 * bounded * slope * half / (levels // 2) * weight)


def test_the_gradient_of_residual_fsq_is_that_of_its_clamp():
    quantizer = vq2.ResidualFSQ([4, 3], 3)
    z = torch.randn(20, 2, requires_grad=True)
    weight = torch.randn(20, 2)
    (quantizer(z)[0] * weight).sum().backward()
    slope = 1 - (z.detach() / (1 + 1 / torch.tensor([3.0, 2.0]))).tanh().square()
    torch.testing.assert_close(z.grad, weight * slope)


def test_a_grid_of_many_values_has_no_value_past_its_ends():
    """The paper's margin of 10⁻³ is more than half a step of 3,000."""
    values, indices = scalar_quantize(torch.tensor([[-50.0], [50.0]]), [3000])
    assert values.flatten().tolist() == pytest.approx([-1, 1499 / 1500])
    assert indices.tolist() == [0, 2999]


def distribution(u: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(−‖u − c‖²/τ) over all codes, `[N, K]`."""
    return (-(u[:, None] - codes).square().sum(-1) / temperature).softmax(-1)


def test_entropies_by_factors_are_those_over_all_codes():
    u = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.02
    codes = vq2.LFQ(32).lookup(torch.arange(32)).double()
    p = distribution(u, codes, 0.01)
    logits = u * 4 / 0.01
    torch.testing.assert_close(entropy_of_bits(logits), torch.special.entr(p).sum(-1))
    torch.testing.assert_close(mean_of_codes(*tables_of_bits(logits)), p.mean(0))


def test_entropies_of_large_logits_are_finite_with_finite_gradients():
    quantizer = vq2.LFQ(64)
    z = (torch.randn(20, 6) * 100).requires_grad_()
    loss = quantizer(z)[2]
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("bits", [1, 4, 5])
def test_the_loss_of_lfq_is_that_over_all_codes(bits):
    quantizer = vq2.LFQ(2**bits, commitment_cost=0.5, entropy_weight=0.2, diversity=0.7)
    z = torch.randn(30, bits, generator=torch.Generator().manual_seed(bits)) * 0.02
    codes = quantizer.lookup(torch.arange(2**bits))
    p = distribution(z.double(), codes.double(), 0.01)
    entropy = torch.special.entr(p).sum(-1).mean() - 0.7 * torch.special.entr(p.mean(0)).sum()
    signs = torch.where(z > 0, 1.0, -1.0)
    expected = 0.5 * F.mse_loss(z.double(), signs.double()) + 0.2 * entropy
    z_q, indices, loss = quantizer(z)
    assert torch.equal(z_q, signs)
    assert torch.equal(codes[indices], signs)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    evaluated = quantizer.eval()(z)[2]
    torch.testing.assert_close(evaluated, 0.5 * F.mse_loss(z, signs))


def test_bsq_has_unit_codes_and_the_entropy_of_its_bits():
    quantizer = vq2.BSQ(2**5, commitment_cost=0.0, entropy_weight=1.0)
    z = torch.randn(30, 5, generator=torch.Generator().manual_seed(3))
    z_q, _, loss = quantizer(z)
    torch.testing.assert_close(z_q.norm(dim=-1), torch.ones(30))
    u = F.normalize(z.double(), dim=-1)
    one = torch.sigmoid(u * 4 * 5**-0.5 / 0.01)
    entr = torch.special.entr
    certain = (entr(one) + entr(1 - one)).sum(-1).mean()
    used = (entr(one.mean(0)) + entr(1 - one.mean(0))).sum()
    torch.testing.assert_close(loss.double(), certain - used, rtol=1e-5, atol=1e-5)


def test_bsq_takes_more_codes_than_a_table_would_hold():
    quantizer = vq2.BSQ(2**40, 8)
    z = torch.randn(10, 8)
    _, indices, loss = quantizer(z)
    assert loss.isfinite()
    assert int(indices.max()) > 2**32
