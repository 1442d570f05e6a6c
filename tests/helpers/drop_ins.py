"""Compares a drop-in module with the one that it replaces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["assert_near", "assert_same_step"]


def assert_near(actual: Any, expected: Any, what: str, tolerance: float = 2e-5) -> None:
    """Tensors, or tuples of them, of equal shapes and dtypes and of nearly equal values.

    Floating values may differ by `tolerance` times the largest expected one (1e-3 at least), other
    values not at all.
    """
    if isinstance(expected, tuple):
        assert getattr(actual, "_fields", None) == getattr(expected, "_fields", None), what
        for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_near(one, other, f"{what} {number}", tolerance)
        return
    if expected is None:
        assert actual is None, what
        return
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    if expected.is_floating_point() and expected.numel():
        scale = float(expected.detach().abs().max())
        error = float((actual.detach() - expected.detach()).abs().max())
        assert error <= tolerance * max(scale, 1e-3), f"{what}: {error} of {scale}"
    else:
        assert torch.equal(actual, expected), what


def assert_same_step(
    theirs: nn.Module,
    ours: nn.Module,
    x: Tensor,
    seed: int,
    tolerance: float = 2e-5,
    **call: Any,
) -> None:
    """Equal results, gradients and states of two quantisers after a forward and backward pass.

    Both return quantised vectors, indices and, third, losses, if they have any.
    """
    results, gradients = [], []
    for module in (theirs, ours):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        torch.manual_seed(seed)
        result = module(leaf, **call)
        result = result if isinstance(result[0], Tensor) else (*result[0], *result[1])
        results.append(result)
        weight = torch.randn(result[0].shape, generator=torch.Generator().manual_seed(9))
        total = (result[0] * weight).sum()
        total = total + sum(loss.sum() for loss in result[2:3] if isinstance(loss, Tensor))
        if total.requires_grad:
            total.backward()
        named = {"x": leaf.grad} | {name: p.grad for name, p in module.named_parameters()}
        gradients.append({name: grad for name, grad in named.items() if grad is not None})
    assert_near(tuple(results[1]), tuple(results[0]), "result")
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_near(gradients[1][name], gradient, f"gradient of {name}", tolerance)
    expected, actual = theirs.state_dict(), ours.state_dict()
    assert list(expected) == list(actual)
    for name, value in expected.items():
        assert_near(actual[name], value, name)
