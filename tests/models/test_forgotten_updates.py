"""A training that never calls `update_codebooks_` is warned, once, and no other training is."""

import warnings

import pytest
import torch

from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2

SIZES = {"hidden_channels": 4, "residual_channels": 2, "num_embeddings": 8, "embedding_dim": 2}


def train(model: VQVAE2, steps: int, *, accumulate: int = 1, update=None) -> list[str]:
    """The warnings of some optimiser steps; `update(model)` comes after each."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            for _ in range(accumulate):
                images = torch.rand(1, 3, 8, 8)
                model.loss(images, model(images)).backward()
            optimizer.step()
            if update is not None:
                update(model)
    return [str(warning.message) for warning in caught]


def small(**changes: object) -> VQVAE2:
    torch.manual_seed(0)
    return VQVAE2(VQVAE2Config(image_size=(8, 8), strides=(2, 2), **SIZES, **changes))


@pytest.mark.parametrize("wait", [0, 100])
def test_forgetting_the_updates_warns_once(wait: int) -> None:
    (message,) = train(small(quantize_after=wait), 30)
    assert message.startswith("10 optimiser steps went by without update_codebooks_()")


def update_one_by_one(model: VQVAE2) -> None:
    for quantizer in model.quantizers:
        quantizer.update_codebook_()


@pytest.mark.parametrize("update", [VQVAE2.update_codebooks_, update_one_by_one])
@pytest.mark.parametrize("wait", [0, 100])
def test_updating_does_not_warn(update, wait: int) -> None:
    assert train(small(quantize_after=wait), 15, update=update) == []


def test_many_micro_batches_do_not_warn() -> None:
    assert train(small(), 1, accumulate=40) == []


def test_codebooks_kept_on_purpose_do_not_warn() -> None:
    model = small(init="normal")
    model.quantizers.eval()
    assert train(model, 15) == []


def test_forwards_without_training_do_not_warn() -> None:
    model = small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(15):
            with torch.no_grad():
                model(torch.rand(1, 3, 8, 8))
                model.decoder.layers[0].weight.add_(1e-3)
