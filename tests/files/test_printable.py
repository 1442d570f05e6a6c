"""Untrusted names cannot act on a terminal."""

from __future__ import annotations

import pytest

from vqvae2_fast.files.printable import printable, short


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Café 日本 🙂", "Café 日本 🙂"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\r\nb\x07", "a\\r\\nb\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
    ],
    ids=["plain", "escape", "lines", "C1", "direction", "surrogate", "separator"],
)
def test_what_cannot_be_printed_is_escaped(text, shown):
    assert printable(text) == shown
    shown.encode()


def test_named_characters_are_kept():
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_long_texts_are_cut():
    assert short("x" * 10**6) == "x" * 97 + "..."
    assert short("\x1b" * 10**6) == "\\x1b" * 24 + "\\..."
    assert short("x" * 100) == "x" * 100
