"""The picture of a folder of samples: which of them it shows, and how they are laid out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from vqvae2_fast.data.sample_folder import SampleFolder
from vqvae2_fast.report import sample_grid, samples
from vqvae2_fast.report.grids import block_columns
from vqvae2_fast.report.samples import folder_grid
from vqvae2_fast.sampling.known import Hole

if TYPE_CHECKING:
    from pathlib import Path


def folder(path: Path, classes: list[str | None]) -> None:
    count = len(classes)
    SampleFolder.begin(path, count, {}).add(
        range(count),
        [Image.new("RGB", (100, 100), (n, 0, 0)) for n in range(count)],
        [{"class": name} for name in classes],
    )


@pytest.fixture
def shown(monkeypatch):
    """What the grid is drawn from: the red value of each image, labels, names, title."""
    calls = []

    def record(images, labels, names, *, title):
        red = ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        calls.append((red, labels, names, title))
        return sample_grid(images, labels, names, title=title)

    monkeypatch.setattr(samples, "sample_grid", record)
    return calls


def test_a_few_of_each_class_are_shown(tmp_path, shown):
    folder(tmp_path, ["b", "a"] * 15)
    folder_grid(tmp_path)
    red, labels, names, title = shown[0]
    assert red == list(range(24))
    assert labels == [1, 0] * 12
    assert names == ["a", "b"]
    assert title == "the first 24 of 30"


@pytest.mark.parametrize(("count", "each", "rows"), [(16, 2, 16), (17, 2, 2), (16, 1, 2)])
def test_many_classes_or_few_samples_share_the_rows_of_groups(tmp_path, shown, count, each, rows):
    folder(tmp_path, [f"{'odd' if n % 2 else 'even'} - {n:02}" for n in range(count)] * each)
    folder_grid(tmp_path)
    red, labels, names, _ = shown[0]
    assert len(names) == rows
    if rows == 2:
        assert names == ["even", "odd"]
        assert labels == [n % count % 2 for n in red]
    if count * each <= 32:  # no row is full
        assert red == list(range(count * each))


def test_samples_without_a_class_get_a_row_beside_classes(tmp_path, shown):
    folder(tmp_path, ["a", None])
    folder_grid(tmp_path)
    assert shown[0] == ([0, 1], [0, 1], ["a", "no class"], "")


def test_without_classes_they_make_a_block(tmp_path):
    folder(tmp_path, [None] * 16)
    picture = folder_grid(tmp_path)
    assert picture.width > 8 * 100
    assert 2 * 100 < picture.height < 3 * 100


def test_a_class_alone_makes_a_block():
    images = torch.zeros(16, 3, 96, 96)
    assert sample_grid(images, [1] * 16, ["a", "b"]).height < 3 * 96


def test_blocks_leave_few_places_empty():
    assert [block_columns(count) for count in (1, 5, 7, 16, 24, 100)] == [1, 5, 7, 8, 12, 10]


class Known:
    """Stands for images that are completed."""

    hole = Hole(torch.ones(100, 100, dtype=torch.bool), [], {})

    def image(self, number: int) -> torch.Tensor:
        return torch.zeros(3, 100, 100)


@pytest.mark.parametrize(
    ("count", "rows", "title"), [(16, 16, ""), (30, 24, " (the first 24 of 30)")]
)
def test_each_completed_image_is_shown_or_said_to_be_left_out(
    tmp_path, monkeypatch, count, rows, title
):
    SampleFolder.begin(tmp_path, count, {}).add(
        range(count), [Image.new("RGB", (100, 100))] * count, [{"known": n} for n in range(count)]
    )
    calls = []
    monkeypatch.setattr(samples, "image_grid", lambda lines, title: calls.append((lines, title)))
    folder_grid(tmp_path, Known())
    lines, told = calls[0]
    assert len(lines) == rows
    assert told == "Left: the image given, pale where it is completed" + title
