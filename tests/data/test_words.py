"""Words of images: which they have, and how a store of codes keeps them."""

import json

import pytest
import torch
from helpers.codes import CodeSet

from vqvae2_fast.data.words import keep_words, words_of_codes, words_of_parts

ATTRIBUTES = [
    {"hair": "long", "glasses": "none"},
    {"hair": "short", "glasses": "round"},
    {"hill": "mesa"},  # of a kind without these parts
]
NAMES = ("glasses=any", "glasses=none", "glasses=round", "hair=long", "hair=short")


def store(path, records: int = 3):
    codes = [torch.zeros(records, 2, 2, dtype=torch.int64)]
    return CodeSet(codes, 8, torch.zeros(records, dtype=torch.int64), ("a",)).write(path)


def told(names, words) -> list[set[str]]:
    return [{names[number] for number in row if number >= 0} for row in words.tolist()]


def test_words_are_parts_with_their_values():
    names, words = words_of_parts(ATTRIBUTES, ["hair", "glasses"])
    assert names == NAMES
    assert told(names, words) == [
        {"hair=long", "glasses=none"},
        {"hair=short", "glasses=round", "glasses=any"},
        set(),
    ]


def test_a_part_that_no_image_has_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="glases.*Perhaps you meant glasses"):
        words_of_parts(ATTRIBUTES, ["glases"])


def test_a_record_of_a_changed_image_has_the_words_of_the_image(tmp_path):
    codes = store(tmp_path, records=6)
    keep_words(tmp_path, words_of_parts(ATTRIBUTES, ["hair"]))
    names, words = words_of_codes(codes.select(torch.tensor([4, 0])))
    assert told(names, words) == [{"hair=short"}, {"hair=long"}]


def test_a_store_without_words_has_none(tmp_path):
    names, words = words_of_codes(store(tmp_path))
    assert (names, words.shape) == ((), (3, 0))


def test_words_of_another_store_are_found_by_their_names(tmp_path):
    codes = store(tmp_path)
    keep_words(tmp_path, words_of_parts(ATTRIBUTES, ["hair"]))
    names, words = words_of_codes(codes, ["x", "hair=short"])
    assert told(names, words) == [set(), {"hair=short"}, set()]


def test_a_store_is_continued_only_with_the_same_words(tmp_path):
    words = words_of_parts(ATTRIBUTES, ["hair"])
    keep_words(tmp_path, words)
    keep_words(tmp_path, words)
    with pytest.raises(ValueError, match="begun with other words"):
        keep_words(tmp_path, words_of_parts(ATTRIBUTES, ["glasses"]))


@pytest.mark.parametrize(
    "content",
    [
        {"names": ["a"], "images": [[1], [], []]},
        {"names": ["a"], "images": [[0], [0]]},
        {"names": ["a", "a"], "images": [[0], [0], []]},
        {"names": ["a"], "images": [[-1], [], []]},
        {"names": "a", "images": [[0], [], []]},
    ],
    ids=["number", "images", "names", "negative", "text"],
)
def test_damaged_words_are_refused_with_the_files_name(tmp_path, content):
    codes = store(tmp_path)
    (tmp_path / "words.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"words\.json is damaged"):
        words_of_codes(codes)
