"""`compat.lucidrains` through `torch.jit.trace` and `torch.export`."""

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


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["vector", "kmeans", "residual"])
def test_a_trace_takes_batches_of_other_sizes(name):
    module = loaded(name)
    traced = torch.jit.trace(module, (torch.randn(2, 6, 8),))
    x = torch.randn(3, 7, 8)
    assert_same_results(traced(x), module(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_that_would_start_the_codebook_is_refused():
    with pytest.raises(RuntimeError, match=r"by a forward before torch\.jit\.trace"):
        torch.jit.trace(MAKE["kmeans"]().eval(), (torch.randn(2, 20, 8),))


@pytest.mark.parametrize("name", MAKE)
def test_an_exported_program_returns_what_the_module_does(name):
    module, x = loaded(name), torch.randn(2, 6, 8)
    program = torch.export.export(module, (x,)).module()
    assert_same_results(program(x), module(x))
