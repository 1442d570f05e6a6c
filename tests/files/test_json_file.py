"""Damaged or malicious small JSON files are refused with a reason, in little memory."""

from __future__ import annotations

import tracemalloc

import pytest

from vqvae2_fast.files.json_file import MAX_TEXT_BYTES, read_object


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"a": 1',
        b"\x80\x04K\x01.",
        b"[1]",
        b"3",
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b'{"a": ' + b"9" * 10**5 + b"}",
        b'{"a": "\xff"}',
    ],
    ids=[
        "empty",
        "cut",
        "pickle",
        "list",
        "number",
        "deep list",
        "deep object",
        "long number",
        "no text",
    ],
)
def test_what_is_no_object_is_refused_in_few_words(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is damaged") as caught:
        read_object(tmp_path / "x.json")
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


def test_a_file_without_end_is_not_read(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**40)  # a hole: no bytes on the disk
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.json is larger than 8388608 bytes"):
        read_object(tmp_path / "x.json")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_TEXT_BYTES
