"""`vqvae2-fast sample --known` with a model of grey images: the colour that it loses is told."""

from __future__ import annotations

import pytest
from PIL import Image


@pytest.fixture
def known_photos(tmp_path):
    """Writes a folder of photographs of one colour each."""

    def write(*colours):
        (tmp_path / "photos").mkdir()
        for number, colour in enumerate(colours):
            Image.new("RGB", (16, 16), colour).save(tmp_path / "photos" / f"{number}.png")
        return tmp_path / "photos"

    return write


def test_a_photo_whose_colour_a_grey_model_loses_is_named(sample, tmp_path, known_photos):
    photo = known_photos((200, 40, 40)) / "0.png"
    with pytest.warns(UserWarning, match=r"0\.png has colour, .* its colour is lost\.$"):
        assert sample(tmp_path / "out", f"--n 1 --known {photo}", pipeline="plain") == 0


def test_of_many_photos_the_first_with_colour_is_named(sample, tmp_path, known_photos):
    photos = known_photos((9, 9, 9), (200, 40, 40), (40, 200, 40))
    with pytest.warns(UserWarning) as told:
        assert sample(tmp_path / "out", f"--n 1 --known {photos}", pipeline="plain") == 0
    assert [f"{photos / '1.png'} has colour" in str(one.message) for one in told] == [True]


@pytest.mark.filterwarnings("error")
def test_a_grey_photo_of_three_channels_loses_nothing(sample, tmp_path, known_photos):
    photos = known_photos((9, 9, 9))
    assert sample(tmp_path / "out", f"--n 1 --known {photos}", pipeline="plain") == 0


@pytest.mark.filterwarnings("error")
def test_a_model_of_colours_loses_none(sample, tmp_path, known_photos):
    photos = known_photos((200, 40, 40))
    assert sample(tmp_path / "out", f"--n 1 --label cat --known {photos}") == 0
