"""Gradients from z_q and the loss to z, against formulas in float64."""

import pytest
import torch

from vqvae2_fast.modules.quantizer import VectorQuantizerEMA

K, D = 8, 6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rotation_gradient(z: torch.Tensor, e: torch.Tensor, dz_q: torch.Tensor) -> torch.Tensor:
    """λ Rᵀ dz_q with the matrix R = I − 2wwᵀ + 2quᵀ of the paper, written out, float64."""
    result = torch.zeros_like(z)
    for n in range(len(z)):
        u, q = z[n] / z[n].norm(), e[n] / e[n].norm()
        w = (u + q) / (u + q).norm()
        rotation = torch.eye(D).double() - 2 * torch.outer(w, w) + 2 * torch.outer(q, u)
        result[n] = e[n].norm() / z[n].norm() * rotation.T @ dz_q[n]
    return result


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_loss_pulls_z_to_its_code(gradient: str) -> None:
    quantizer = VectorQuantizerEMA(K, D, 0.5, init="normal", gradient=gradient).eval()
    z = torch.randn(30, D, requires_grad=True)
    z_q, _, loss = quantizer(z)
    loss.backward()
    expected = 0.5 * 2 * (z - z_q).detach() / z.numel()
    torch.testing.assert_close(z.grad, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_rotation_gradient_is_that_of_the_papers_matrix(dtype: torch.dtype, rtol: float) -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", gradient="rotation").eval()
    z = torch.randn(30, D).to(dtype).requires_grad_()
    dz_q = torch.randn(30, D).to(dtype)
    z_q, _, _ = quantizer(z)
    z_q.backward(dz_q)
    expected = rotation_gradient(z.detach().double(), z_q.detach().double(), dz_q.double())
    # bfloat16: the gradient is rounded once, 2⁻⁹ of the largest term of a sum of D.
    error = (z.grad.double() - expected).abs().max()
    assert error <= rtol * expected.abs().max()


def test_rotation_of_a_zero_vector_has_a_finite_gradient() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", gradient="rotation").eval()
    z = torch.zeros(3, D, requires_grad=True)
    z_q, indices, _ = quantizer(z)
    z_q.sum().backward()
    assert torch.isfinite(z.grad).all()
    assert torch.equal(z_q, quantizer.codebook[indices])


def test_no_gradient_reaches_the_codebook() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal")
    z_q, _, loss = quantizer(torch.randn(30, D, requires_grad=True))
    (z_q.sum() + loss).backward()
    assert quantizer.codebook.grad is None
    assert not list(quantizer.parameters())
