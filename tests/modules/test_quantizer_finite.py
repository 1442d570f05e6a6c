"""A vector with NaN or infinity spoils only its own step, and no code."""

import pytest
import torch

from vqvae2_fast.modules.quantizer import VectorQuantizerEMA

K, D = 6, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("ema_start", ["one", "debiased"])
@pytest.mark.parametrize("restart", [0.0, 0.5])
def test_its_code_stays_and_is_used_again(restart: float, ema_start: str, value: float) -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", ema_start=ema_start, restart=restart)
    z = quantizer.codebook.repeat(3, 1)
    quantizer(z)
    before = quantizer.codebook.clone()
    spoiled = z.clone()
    spoiled[2, 1] = value
    _, indices, _ = quantizer(spoiled)
    assert indices[2] == 0  # no distance is finite
    torch.testing.assert_close(quantizer.codebook[0], before[0])
    quantizer(z)
    assert quantizer.usage == 1
    assert all(buffer.isfinite().all() for buffer in quantizer.state_dict().values())


def test_other_codes_move_as_without_it() -> None:
    quantizer, clean = (VectorQuantizerEMA(K, D, init="normal", restart=0) for _ in range(2))
    z = clean.codebook.repeat(3, 1) + 0.1
    quantizer(torch.cat([z, torch.full((1, D), float("nan"))]))
    clean(z)
    assert torch.equal(quantizer.codebook[1:], clean.codebook[1:])


def test_kmeans_starts_from_the_finite_vectors() -> None:
    quantizer = VectorQuantizerEMA(K, D, restart=0, update="step")
    z = torch.randn(60, D)
    z[::2] = float("nan")
    quantizer(z)
    assert quantizer.codebook.isfinite().all()
    assert len(quantizer(z[1::2])[1].unique()) > 1


def test_no_code_restarts_from_it() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", decay=0.1, restart=0.5)
    codebook = torch.randn(K, D)
    codebook[-1] += 1000
    quantizer.set_codebook_(codebook)
    z = torch.full((20, D), float("nan"))
    z[0] = codebook[0]
    quantizer(z)
    assert quantizer.codebook.isfinite().all()
