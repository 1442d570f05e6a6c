"""Only the buffers say whether a codebook has started, however they were set."""

import pytest
import torch
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vqvae2_fast.modules import averages, host
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA

K, D = 6, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "as_on_a_gpu"])
def _reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers are read in every step on a CPU, and on a GPU until the codebook has started."""
    if request.param == "as_on_a_gpu":
        for module in (averages, host):
            monkeypatch.setattr(module, "reading_synchronises", lambda _: True)


def quantizer(**arguments: object) -> VectorQuantizerEMA:
    return VectorQuantizerEMA(K, D, **{"update": "step", **arguments})


def far(codes: torch.Tensor) -> torch.Tensor:
    """Vectors to which k-means would move codes."""
    return codes.repeat(5, 1) + 100


def set_buffers(module: VectorQuantizerEMA, codes: torch.Tensor) -> None:
    module.codebook.copy_(codes)
    module.initialised.fill_(True)


def set_data(module: VectorQuantizerEMA, codes: torch.Tensor) -> None:
    """Bypasses the version counters, as some averages of weights do."""
    module.codebook.data.copy_(codes)
    module.initialised.data.copy_(torch.tensor(1.0))


def replace_buffers(module: VectorQuantizerEMA, codes: torch.Tensor) -> None:
    module.codebook = codes.clone()
    module.initialised = torch.tensor(True)


def load(module: VectorQuantizerEMA, codes: torch.Tensor) -> None:
    state = module.state_dict() | {"codebook": codes, "initialised": torch.tensor(True)}
    module.load_state_dict(state)


@pytest.mark.usefixtures("_reading")
@pytest.mark.parametrize("put", [set_buffers, set_data, replace_buffers, load])
def test_a_codebook_set_by_hand_is_not_started_again(put) -> None:
    module, codes = quantizer(), torch.randn(K, D)
    put(module, codes)
    module(far(codes))
    assert torch.equal(module.codebook, codes)


@pytest.mark.usefixtures("_reading")
def test_an_averaged_model_keeps_the_codebook_that_it_was_given() -> None:
    module, codes = quantizer(), torch.randn(K, D)
    averaged = AveragedModel(module)
    set_buffers(module, codes)
    averaged.update_parameters(module)
    averaged.train()(far(codes))
    assert torch.equal(averaged.module.codebook, codes)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.5)])
def test_buffers_can_be_averaged(average) -> None:
    module = quantizer(init="normal")
    averaged = AveragedModel(module, use_buffers=True, multi_avg_fn=average)
    averaged.update_parameters(module)
    first = module.codebook.clone()
    module.set_codebook_(torch.randn(K, D))
    averaged.update_parameters(module)
    torch.testing.assert_close(averaged.module.codebook, (first + module.codebook) / 2)
    assert averaged.module.initialised


def test_a_state_dict_holds_its_flag_as_bool() -> None:
    state = quantizer(init="normal").state_dict()
    assert state["initialised"].dtype == torch.bool
    loaded = quantizer()
    loaded.load_state_dict(state)
    assert loaded.initialised


@pytest.mark.usefixtures("_reading")
def test_a_functional_call_uses_the_buffers_that_it_is_given() -> None:
    module, codes = quantizer(), torch.randn(K, D)
    started = {name: buffer.clone() for name, buffer in module.named_buffers()}
    started |= {"codebook": codes, "initialised": torch.tensor(True)}
    functional_call(module, started, far(codes))
    assert torch.equal(started["codebook"], codes)
    assert not module.initialised
    module(far(codes))
    assert module.codebook.min() > 50


@pytest.mark.usefixtures("_reading")
def test_a_functional_call_past_the_wait_does_not_end_the_modules_own() -> None:
    module, codes = quantizer(quantize_after=3), torch.randn(K, D)
    started = {name: buffer.clone() for name, buffer in module.named_buffers()}
    started |= {"codebook": codes, "initialised": torch.tensor(True)}
    assert len(functional_call(module, started, codes)[1].unique()) == K
    assert torch.equal(module(codes)[0], codes)
    assert not module.initialised


def test_a_started_codebook_starts_again_where_its_buffer_is_reset() -> None:
    module = quantizer()
    codes = torch.randn(K, D)
    module(codes)
    module.initialised.fill_(False)
    module(far(codes))
    assert module.codebook.min() > 50


@pytest.mark.usefixtures("_reading")
def test_a_wait_ends_where_its_buffers_say_so() -> None:
    module, codes = quantizer(quantize_after=3), torch.randn(K, D)
    module(codes)
    assert not module.initialised
    module.steps.fill_(3)
    module(codes)
    assert module.initialised
