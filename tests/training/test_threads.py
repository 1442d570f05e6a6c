"""A training step gives the same bits on one thread as on more, so that it may change in a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqvae2_fast import VQVAE2, PixelSNAIL, PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.machine.fitting_threads import FittingThreads
from vqvae2_fast.ops import _native
from vqvae2_fast.testing.codes import random_codes
from vqvae2_fast.training import TrainConfig, loop, prior_stage, train, vqvae_stage

# Threads share its features in parts that do not fill vectors.
PRIOR = PixelSNAILConfig(
    size=(16, 19),
    num_embeddings=64,
    channels=40,
    residual_channels=48,
    num_blocks=2,
    layers_per_block=1,
    num_heads=5,
    num_output_layers=1,
    condition_sizes=((8, 19),),
    condition_channels=32,
    num_condition_layers=1,
)
CONFIG = TrainConfig(steps=4, batch_size=6, warmup_steps=1, log_every=1, validate_every=4)


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    value = loss()
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return [value.detach(), norm, *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_equal_bits_on(numbers, run, with_threads):
    expected, *others = (with_threads(number, run) for number in numbers)
    for other in others:
        for a, b in zip(expected, other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "changes", [{"embedding_dim": 16}, {"gradient": "rotation"}, {"hidden_channels": 17}]
)
def test_of_a_vqvae(changes, with_threads):
    torch.manual_seed(1)
    config = VQVAE2Config(
        image_size=(64, 96), hidden_channels=32, residual_channels=24, embedding_dim=24
    )
    config = replace(config, **changes)
    model = VQVAE2(config).to(memory_format=torch.channels_last).train()
    images = torch.rand(5, 3, 64, 96) * 2 - 1
    model.loss(images, model(images))  # codebooks start from the first batch

    def run():
        return gradients(model, lambda: model.loss(images, model(images)))

    assert_equal_bits_on((1, 2, 3, 5), run, with_threads)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": False},
        {"attention_dropout_on": "probabilities", "weight_norm": False},
        {"mask": "downright", "kernel_size": 4},  # no tiles have such a kernel
    ],
)
def test_of_a_prior(changes, with_threads):
    torch.manual_seed(1)
    config = replace(PRIOR, **changes)
    model = PixelSNAIL(config).train()
    codes, above = torch.randint(64, (7, 16, 19)), torch.randint(64, (7, 8, 19))

    def run():
        return gradients(model, lambda: model.loss(codes, above))

    assert_equal_bits_on((1, 2, 3, 5), run, with_threads)


class Changing:
    """Lets every second step of a training take one thread, and counts the steps."""

    def __init__(self, monkeypatch):
        self.steps = 0
        monkeypatch.setattr(FittingThreads, "should_take_one", lambda threads: self.takes_one())

    def takes_one(self):
        self.steps += 1
        return self.steps % 2 == 0


def trained(stage, config=CONFIG):
    log = [{**line, "seconds": 0} for line in train(stage, config).log]
    return log, {name: value.clone() for name, value in stage.model.state_dict().items()}


def new_vqvae_stage(**changes):
    torch.manual_seed(0)
    data = ImageTensorDataset(torch.randint(256, (24, 3, 64, 64), dtype=torch.uint8))
    config = VQVAE2Config(image_size=(64, 64), hidden_channels=32, residual_channels=16)
    return vqvae_stage(VQVAE2(replace(config, **changes)), data, data, CONFIG)


def new_prior_stage(folder):
    torch.manual_seed(0)
    store = random_codes(64, 24, sizes=((8, 19), (16, 19))).write(folder)
    prior = PixelSNAIL(replace(PRIOR, num_classes=len(store.manifest.class_names)))
    return prior_stage(prior, store, store, CONFIG, level=1)


@pytest.mark.parametrize("new_stage", [lambda folder: new_vqvae_stage(), new_prior_stage])
def test_may_change_in_a_training(new_stage, monkeypatch, with_threads, tmp_path):
    log, weights = with_threads(2, lambda: trained(new_stage(tmp_path / "a")))
    changing = Changing(monkeypatch)
    other_log, other = with_threads(2, lambda: trained(new_stage(tmp_path / "b")))
    assert changing.steps == CONFIG.steps
    assert other_log == log
    assert all(torch.equal(value, other[name]) for name, value in weights.items())


def stays(stage, monkeypatch, with_threads, config=CONFIG):
    changing = Changing(monkeypatch)
    with_threads(2, lambda: trained(stage, replace(config, steps=1)))
    return changing.steps == 0


@pytest.mark.filterwarnings("ignore:the held-out images use only")
def test_stay_with_another_quantiser(monkeypatch, with_threads):
    assert stays(new_vqvae_stage(quantizer=("fsq:8,8,8",)), monkeypatch, with_threads)


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"workers": 1}])
def test_stay_with_settings_of_other_bits_or_processes(changes, monkeypatch, with_threads):
    config = replace(CONFIG, **changes)
    assert stays(new_vqvae_stage(), monkeypatch, with_threads, config)


def test_stay_without_the_compiled_library(monkeypatch):
    monkeypatch.setattr(_native, "module", None)
    assert not loop._may_take_one_thread(
        new_vqvae_stage(), CONFIG, torch.autocast("cpu", enabled=False)
    )


def test_stay_with_float64(monkeypatch, with_threads, tmp_path):
    stage = new_prior_stage(tmp_path)
    stage.model.double()
    assert stays(stage, monkeypatch, with_threads)


def test_stay_with_weights_that_torch_multiplies(monkeypatch, with_threads):
    stage = new_vqvae_stage(hidden_channels=216)  # 216 x 216 x 3 x 3, no multiple of 16
    assert stays(stage, monkeypatch, with_threads)
