"""Numbers and records for people."""

from __future__ import annotations

import math

import pytest

from vqvae2_fast.console.words import counted, described, did_you_mean, number, together


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


def test_records_are_described_without_pythons_marks():
    values = {
        "records": 12345,
        "num_embeddings": 16,
        "level_sizes": ((8, 8), (16, 16)),
        "class_names": ["cat", "dog"],
        "label": None,
        "nothing": [],
        "unsaid": "",
        "config": {"image_size": [32, 16], "strides": [2, 2], "flip": True, "epsilon": 1e-05},
        "empty": {},
    }
    assert described(values) == [
        "records: 12,345",
        "number of embeddings: 16",
        "level sizes: 8x8, 16x16",
        "class names: cat, dog",
        "label: none",
        "nothing: none",
        "unsaid: none",
        "config:",
        "  image size: 32x16",
        "  strides: 2, 2",
        "  flip: yes",
        "  epsilon: 0.00001",
        "empty: none",
    ]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [("fod", " Perhaps you meant Food."), ("FLAG", " Perhaps you meant flags."), ("xyz", "")],
)
def test_the_choice_most_like_a_word_is_named_if_there_is_one(word, sentence):
    assert did_you_mean(word, ("Food", "flags", "objects")) == sentence


def test_one_of_a_kind_is_singular() -> None:
    assert [counted(n, "image") for n in (0, 1, 1000)] == ["0 images", "1 image", "1,000 images"]
    assert counted(2, "image or tile", "images or tiles") == "2 images or tiles"


def test_names_in_a_sentence_have_one_and():
    named = [together(("top", "middle", "bottom")[:n]) for n in (1, 2, 3)]
    assert named == ["top", "top and middle", "top, middle and bottom"]
