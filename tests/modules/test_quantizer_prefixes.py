"""The first q of Q quantisers: `encode(z, num_quantizers=q)` and `lookup` of the first columns."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vqvae2_fast as vq2

D, Q = 6, 4
MAKE = {
    "residual": lambda **options: vq2.ResidualVQ(8, D, Q, **options),
    "residual_sizes": lambda **options: vq2.ResidualVQ((8, 3, 5, 4), D, **options),
    "residual_shared": lambda **options: vq2.ResidualVQ(8, D, Q, shared_codebook=True, **options),
    "residual_fsq": lambda **options: vq2.ResidualFSQ([4, 3], Q, D, **options),
    "grouped": lambda **options: vq2.GroupedResidualVQ(2, 8, D, Q, **options),
}


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    quantizer = MAKE[name]()
    for _ in range(2):
        quantizer(torch.randn(4, 30, D))
    return quantizer.eval()


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("number", range(1, Q + 1))
def test_a_prefix_equals_the_first_columns(name, number):
    quantizer, z = made(name), torch.randn(3, 11, D)
    assert torch.equal(
        quantizer.encode(z, num_quantizers=number), quantizer.encode(z)[..., :number]
    )


@pytest.mark.parametrize("name", ["residual", "residual_sizes", "residual_shared", "grouped"])
@pytest.mark.parametrize("number", range(1, Q + 1))
def test_the_first_columns_lead_to_the_sum_of_the_first_codes(name, number):
    quantizer = made(name)
    indices = quantizer.encode(torch.randn(30, D))
    fewer = indices.clone()
    fewer[..., number:] = -1
    assert torch.equal(quantizer.lookup(indices[..., :number]), quantizer.lookup(fewer))


def test_each_grid_adds_its_own_values():
    quantizer = vq2.ResidualFSQ([4, 3, 5, 4, 3, 2], Q)
    indices = quantizer.encode(torch.randn(30, D))
    sums = [quantizer.lookup(indices[:, :number]) for number in range(1, Q + 1)]
    for number in range(1, Q):
        other = indices.roll(1, dims=0)
        other[:, number] = indices[:, number]
        added = [
            quantizer.lookup(codes[:, : number + 1]) - quantizer.lookup(codes[:, :number])
            for codes in (indices, other)
        ]
        torch.testing.assert_close(*added)
        assert not torch.equal(sums[number], sums[number - 1])


class Searches(TorchDispatchMode):
    """Counts the quantisers that are searched."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.vqvae2_fast.residual_nearest_code.default:
            self.count += len(args[1])
        if func is torch.ops.vqvae2_fast.scalar_quantize.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MAKE)
def test_quantisers_beyond_a_prefix_are_not_searched(name):
    quantizer = made(name)
    with Searches() as searches:
        quantizer.encode(torch.randn(5, D), num_quantizers=3)
    assert searches.count == (6 if name == "grouped" else 3)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("number", [0, Q + 1, -1, 1.5, True])
def test_another_number_of_quantisers_is_refused(name, number):
    with pytest.raises(ValueError, match=rf"expected num_quantizers .* 1 to {Q}, got {number}"):
        MAKE[name]().encode(torch.randn(5, D), num_quantizers=number)


@pytest.mark.parametrize("name", MAKE)
def test_a_joint_code_has_no_prefix(name):
    with pytest.raises(ValueError, match=r"num_quantizers=None with joint_code=True, got 2"):
        MAKE[name](joint_code=True).encode(torch.randn(5, D), num_quantizers=2)
