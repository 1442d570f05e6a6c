"""Differences of state dicts: none is lost among the others."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.compare import relative_difference

EXPECTED = {"a": torch.tensor([1.0, -4.0]), "zeros": torch.zeros(2), "steps": torch.tensor(3)}


def difference(name: str, values: list[float]) -> float:
    return relative_difference({**EXPECTED, name: torch.tensor(values)}, EXPECTED)


def test_a_difference_is_told_in_the_largest_number_of_its_tensor():
    assert difference("a", [1.0, -4.0]) == 0
    assert difference("a", [1.5, -4.0]) == 0.125


@pytest.mark.parametrize("name", ["a", "zeros"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_bound_holds_where_a_number_is_not_finite(name, value):
    assert not difference(name, [0.0, value]) <= 1e30


def test_no_bound_holds_for_other_numbers_than_zeros():
    assert not difference("zeros", [0.0, 1e-30]) <= 1e30
