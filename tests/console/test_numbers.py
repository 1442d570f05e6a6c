"""Numbers for people."""

from __future__ import annotations

import math

import pytest

from vqvae2_fast.console.numbers import number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (36321.7, "36,320"),
        (1234567, "1,235,000"),
        (12.3449, "12.34"),
        (0.0123449, "0.01234"),
        (0.0000123, "0.0000123"),
        (-1.5, "-1.5"),
        (100.0, "100"),
        (9999.9, "10,000"),
        (0, "0"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_have_four_digits_and_no_exponent(value, text):
    assert number(value) == text


def test_digits_can_be_chosen():
    assert number(36321.7, 2) == "36,000"
