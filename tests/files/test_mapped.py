"""Files that are mapped: what is refused before."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqvae2_fast.files.mapped import MappedFile


def test_a_path_that_is_not_utf8_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"n\\udcff/x is not UTF-8.* rename the folder"):
        MappedFile(Path("n\udcff/x"), 1)
