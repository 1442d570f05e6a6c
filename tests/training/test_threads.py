"""A training step gives the same bits on any number of threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqvae2_fast import VQVAE2, PixelSNAIL, PixelSNAILConfig, VQVAE2Config

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
