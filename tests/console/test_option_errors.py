"""Words for values that are no numbers."""

from __future__ import annotations

import pytest

from vqvae2_fast.console.option_errors import number_error

SAID = """
│ Error parsing --{0}: invalid │
│ ──────────────────────────── │
│     --{0} {1} │
"""


@pytest.mark.parametrize(
    ("takes", "word", "told"),
    [
        ("INT", "1e3", "a whole number, such as 1000, got '1e3'"),
        ("INT", "12,000", "a whole number, such as 12000, got '12,000'"),
        ("INT", "0.5", "a whole number, got '0.5'"),
        ("INT", "1e400", "a whole number, got '1e400'"),
        ("{None}|INT", "nan", "a whole number, got 'nan'"),
        ("FLOAT", "0,9", "a number, such as 0.9, got '0,9'"),
        ("[FLOAT [FLOAT ...]]", "5%", "a number, such as 0.05, got '5%'"),
    ],
)
def test_what_was_expected_and_what_came(takes: str, word: str, told: str) -> None:
    found = number_error(
        SAID.format("a.top-p", takes), ["--x", "y", "--a.top_p", "None", "1", word]
    )
    assert found == f"--a.top-p: expected {told}."


@pytest.mark.parametrize("said", ["", SAID.format("a", "{x,y}"), SAID.format("a", "{auto}|INT")])
def test_other_errors_stay_with_the_parser(said: str) -> None:
    assert number_error(said, ["--a", "z"]) is None
