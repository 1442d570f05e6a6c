"""docs/security.md names the limits that the code has."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqvae2_fast.data import code_format, fashion_mnist, images, pixels, web_dataset
from vqvae2_fast.files import json_file, pickled_arrays, untrusted
from vqvae2_fast.metrics import perceptual

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("{} pixels", pixels.MAX_PIXELS),
        ("{} bytes a member", web_dataset.MAX_MEMBER_BYTES),
        ("labels below {}", images.MAX_CLASSES),
        ("at most {} of them", images.MAX_CLASSES),
        ("at most {} characters", images.MAX_CLASS_NAME),
        ("{} bytes per file; ratio 100", fashion_mnist._MAX_IDX_BYTES),
        ("{} bytes of manifest", code_format.MAX_MANIFEST_BYTES),
        ("{} levels", code_format.MAX_LEVELS),
        ("{} codes per record", code_format.MAX_CODES),
        ("{} embeddings", code_format.MAX_EMBEDDINGS),
        ("{} bytes of each JSON file", json_file.MAX_TEXT_BYTES),
        ("{} bytes; 1,000 objects", perceptual._MAX_BYTES),
        ("{} objects a row", pickled_arrays._MAX_MEMO),
        ("*Ratio {}*", untrusted.MAX_RATIO),
    ],
)
def test_limits_are_those_of_the_code(text, limit) -> None:
    assert text.format(f"{limit:,}") in PAGE


def test_formats_are_those_of_the_code() -> None:
    assert ", ".join(pixels.FORMATS).replace("WEBP", "WebP") in PAGE
