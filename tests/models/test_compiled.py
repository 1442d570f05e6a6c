"""Compiled models: one graph for a training step and one for evaluation, and eager's numbers."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.models import SMALL_PRIOR, SMALL_VQVAE
from torch import Tensor, nn
from torch._dynamo.utils import counters

from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.presets import preset


def vqvae() -> VQVAE2:
    torch.manual_seed(0)
    config = replace(
        SMALL_VQVAE,
        image_size=(16, 16),
        hidden_channels=4,
        residual_channels=2,
        num_embeddings=16,
    )
    return VQVAE2(config)


def prior() -> PixelSNAIL:
    torch.manual_seed(0)
    config = replace(
        SMALL_PRIOR,
        size=(8, 8),
        num_embeddings=32,
        channels=16,
        residual_channels=16,
        condition_sizes=((4, 4),),
    )
    return PixelSNAIL(config)


def images(count: int) -> tuple[Tensor]:
    return (torch.rand(count, 3, 16, 16) * 2 - 1,)


def codes(count: int) -> tuple[Tensor, list[Tensor], Tensor]:
    coarse = torch.randint(32, (count, 4, 4))
    return torch.randint(32, (count, 8, 8)), [coarse], torch.randint(4, (count,))


def compiled_and_eager(model: nn.Module, backend: str) -> tuple[nn.Module, nn.Module]:
    torch._dynamo.reset()
    eager = copy.deepcopy(model)
    return torch.compile(model, fullgraph=True, dynamic=backend != "eager", backend=backend), eager


def assert_trains_as_eager(
    model: nn.Module, loss: Callable[[nn.Module, int], Tensor], backend: str
) -> None:
    """Two steps; `loss(model, count)` is that of a batch of `count`."""
    compiled, eager = compiled_and_eager(model, backend)
    for step in range(2):
        for module in (compiled, eager):
            torch.manual_seed(step)
            module.zero_grad()
            loss(module, 9 + 2 * step).backward()
            with torch.no_grad():
                for weight in module.parameters():
                    weight -= 0.1 * weight.grad
            if isinstance(model, VQVAE2):
                module.update_codebooks_()
    for name, expected in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-4, atol=1e-5)


def vqvae_loss(model: nn.Module, count: int) -> Tensor:
    (batch,) = images(count)
    output = model(batch)
    return (output.reconstruction - batch).square().mean() + output.commitment


def prior_loss(model: nn.Module, count: int) -> Tensor:
    return model(*codes(count), as_loss=True)


def test_batches_of_other_sizes_need_no_other_graph() -> None:
    torch._dynamo.reset()
    counters.clear()
    dynamic = torch.compile(prior(), fullgraph=True, dynamic=True, backend="eager")
    for count in (17, 19, 23):
        prior_loss(dynamic, count)
    assert counters["stats"]["unique_graphs"] == 1


def test_batches_for_which_eager_takes_different_kernels_are_one_graph() -> None:
    torch._dynamo.reset()
    counters.clear()
    eager = VQVAE2(preset("emoji32").vqvae)
    model = copy.deepcopy(eager)
    dynamic = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for count in (2, 4, 8, 12):
        batch = torch.rand(count, 3, 32, 32) * 2 - 1
        for module in (dynamic, eager):
            module.zero_grad()
            module(batch).reconstruction.square().mean().backward()
        for weight, expected in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_decoder_is_exported_for_batches_of_any_size() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = VQVAE2(preset("emoji32").vqvae).eval()

        def forward(self, top: Tensor, bottom: Tensor) -> Tensor:
            return self.model.decode([top, bottom])

    decoder, maps = Decoder(), (torch.zeros(4, 8, 8).long(), torch.zeros(4, 16, 16).long())
    sizes = {0: torch.export.Dim("batch")}
    program = torch.export.export(decoder, maps, dynamic_shapes=(sizes, sizes))
    small = tuple(codes[:2] for codes in maps)
    torch.testing.assert_close(program.module()(*small), decoder(*small))


def test_an_update_of_all_codebooks_is_one_graph() -> None:
    model = vqvae()
    model(*images(4))
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    torch.compile(model.update_codebooks_, fullgraph=True, backend="eager")()
    eager.update_codebooks_()
    assert all(quantizer.steps == 1 for quantizer in model.quantizers)
    torch.testing.assert_close(model.state_dict(), eager.state_dict())


def test_a_compiled_update_ends_the_wait_of_a_compiled_model() -> None:
    torch._dynamo.reset()
    model = VQVAE2(replace(SMALL_VQVAE, image_size=(16, 16), quantize_after=2))
    compiled = torch.compile(model, backend="eager")
    update = torch.compile(model.update_codebooks_, backend="eager")
    for steps in (0, 1, 2):
        assert any(codes.any() for codes in compiled(*images(4)).codes) == (steps == 2)
        update()


BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_vqvae_trains(backend: str) -> None:
    assert_trains_as_eager(vqvae(), vqvae_loss, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prior_trains(backend: str) -> None:
    # Inductor's own generator would drop other values.
    with torch._inductor.config.patch(fallback_random=True):
        assert_trains_as_eager(prior(), prior_loss, backend)


@pytest.mark.inductor
@pytest.mark.parametrize("make", [vqvae, prior])
def test_evaluation(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    batch = images if isinstance(model, VQVAE2) else codes
    compiled, eager = compiled_and_eager(model, "inductor")
    for count in (9, 11):
        arguments = batch(count)
        with torch.no_grad():
            torch.testing.assert_close(
                *(torch.utils._pytree.tree_leaves(m(*arguments)) for m in (compiled, eager))
            )
