"""`compat.lucidrains` through `torch.export`."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.compat.lucidrains import ResidualVQ, VectorQuantize

MAKE = {
    "vector": lambda: VectorQuantize(8, 12),
    "kmeans": lambda: VectorQuantize(8, 12, kmeans_init=True),
    "residual": lambda: ResidualVQ(dim=8, codebook_size=12, num_quantizers=2),
    "beam": lambda: ResidualVQ(dim=8, codebook_size=12, num_quantizers=2, beam_size=2),
}


def loaded(name: str) -> torch.nn.Module:
    """A module in evaluation, of a state that has started and that it has not yet looked at."""
    torch.manual_seed(0)
    source, module = MAKE[name](), MAKE[name]()
    source(torch.randn(2, 20, 8))
    module.load_state_dict(source.state_dict())
    return module.eval()


def assert_same_results(actual, expected) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", MAKE)
def test_an_exported_program_returns_what_the_module_does(name):
    module, x = loaded(name), torch.randn(2, 6, 8)
    program = torch.export.export(module, (x,)).module()
    assert_same_results(program(x), module(x))
