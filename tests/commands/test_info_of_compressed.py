"""What `vqvae2-fast info` says of a file of `compress`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from helpers.models import tiny_pipeline

from vqvae2_fast import codec
from vqvae2_fast.cli import main
from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")


def run(line: str) -> int:
    return main(line.split())


def test_info_tells_tiles_from_images_and_height_from_width(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress photos/2.png --pipeline pipeline --out x.vq2 --quiet") == 0
    capsys.readouterr()
    assert run("info x.vq2") == 0
    text = capsys.readouterr().out
    # 40 rows and 23 columns of pixels make 3 x 2 tiles of 16x16.
    assert (
        "images or tiles (an image larger than the model's is stored as several tiles): 6" in text
    )
    assert "image sizes (height x width): 40x23" in text


def test_info_counts_the_levels_of_a_file_and_those_cut_off(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress photos/0.png --pipeline pipeline --levels top --out x.vq2 --quiet") == 0
    capsys.readouterr()
    assert run("info x.vq2") == 0
    text = capsys.readouterr().out
    assert "levels in the file (decompress draws any others that the pipeline has): 1" in text
    assert "levels cut off from the end of the file: 0" in text


def test_info_shows_no_image_size_of_code_maps(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = [torch.zeros(1, side, side, dtype=torch.int64) for side in (4, 8)]
    (workplace / "x.vq2").write_bytes(codec.encode_codes(tiny_pipeline(3), codes))
    assert run("info x.vq2") == 0
    text = capsys.readouterr().out
    assert "kind: compressed code maps" in text
    assert "0x0" not in text


def test_info_describes_a_file(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("compress photos --pipeline pipeline --out x.vq2 --quiet")
    capsys.readouterr()
    assert main(["info", "x.vq2"]) == 0
    assert "kind: compressed images" in capsys.readouterr().out


def test_info_knows_a_file_by_its_beginning(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress photos/0.png --pipeline pipeline --out cats.bin --quiet") == 0
    capsys.readouterr()
    assert run("info cats.bin") == 0
    assert "kind: compressed images" in capsys.readouterr().out
