"""A user's module that holds the quantiser, compiled: one graph, and the numbers of eager mode."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.residual_vq import ResidualVQ

K, D = 32, 8
OPTIONS = {
    "defaults": {},
    "normal": {"init": "normal"},
    "debiased": {"ema_start": "debiased", "restart": 0},
    "rotation": {"gradient": "rotation"},
    "cosine": {"metric": "cosine", "restart": 0.5},
    "by_step": {"update": "step"},
    "after_a_wait": {"update": "step", "quantize_after": 2},
}


class Autoencoder(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, D))
        self.quantizer = VectorQuantizerEMA(K, D, **options)
        self.decoder = nn.Linear(D, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z_q, indices, loss = self.quantizer(self.encoder(x))
        return self.decoder(z_q), indices, loss


def assert_trains_as_eager(backend: str, options: dict[str, object], graphs: int = 1) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    compiled_module = Autoencoder(**options)
    eager = copy.deepcopy(compiled_module)
    compiled = torch.compile(compiled_module, fullgraph=True, dynamic=True, backend=backend)
    for step in range(4):
        x = torch.randn(80 + 7 * step, 6)
        for call, module in ((eager, eager), (compiled, compiled_module)):
            module.zero_grad()
            y, _, loss = call(x)
            ((y - x).square().mean() + loss).backward()
            if module.quantizer.rule.update == "step":
                module.quantizer.update_codebook_()
            with torch.no_grad():
                for weight in module.parameters():
                    weight -= 0.1 * weight.grad
        others = compiled_module.state_dict()
        for name, value in eager.state_dict().items():
            torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5, msg=name)
        for name in ("perplexity", "usage"):
            value, other = (getattr(m.quantizer, name) for m in (eager, compiled_module))
            torch.testing.assert_close(other, value, rtol=1e-4, atol=0)
    assert counters["stats"]["unique_graphs"] == graphs


def test_inductor_trains_from_the_kmeans_start_on() -> None:
    assert_trains_as_eager("inductor", {})


@pytest.mark.inductor
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "defaults"])
def test_inductor_trains_with_every_option(name: str) -> None:
    assert_trains_as_eager("inductor", OPTIONS[name], graphs=2 if name == "after_a_wait" else 1)


@pytest.mark.parametrize(("name", "graphs"), [("cosine", 1), ("after_a_wait", 2)])
def test_a_training_step_breaks_no_graph(name: str, graphs: int) -> None:
    assert_trains_as_eager("aot_eager", OPTIONS[name], graphs)


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
@pytest.mark.parametrize("make", [partial(VectorQuantizerEMA, K), partial(ResidualVQ, (K, K))])
def test_references_break_no_graph(make, gradient: str) -> None:
    """They compute float64, and everything where there are no compiled kernels."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    quantizer = make(D, init="normal", gradient=gradient)
    compiled = torch.compile(copy.deepcopy(quantizer), fullgraph=True, backend="aot_eager")
    z = torch.randn(80, D, dtype=torch.float64)
    results = []
    for call in (quantizer, compiled):
        inputs = z.clone().requires_grad_()
        z_q, indices, loss = call(inputs)
        (z_q.square().sum() + loss).backward()
        results.append([z_q, indices, loss, inputs.grad])
    torch.testing.assert_close(*results)


def test_an_exported_program_takes_any_number_of_vectors() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal").eval()
    batch = torch.export.Dim("batch", min=1)
    # Behind an encoder, whose weights need a gradient.
    module = nn.Sequential(nn.Linear(6, D), quantizer)
    program = torch.export.export(module, (torch.randn(3, 6),), dynamic_shapes=({0: batch},))
    x = torch.randn(5 * K, 6)
    torch.testing.assert_close(program.module()(x), module(x))
