"""`vqvae2-fast sample --known`: what is kept of images, their classes, holes that are filled."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vqvae2_fast.checkpoints import load
from vqvae2_fast.data import to_float, to_uint8, write_codes
from vqvae2_fast.data.pixels import decode_image
from vqvae2_fast.sampling import fill
from vqvae2_fast.sampling.known import painted


def test_completion_keeps_the_upper_rows(sample, tmp_path, column, pixels):
    assert sample(tmp_path / "whole", "--n", "1", "--label", "cat") == 0
    image = str(tmp_path / "whole" / "images" / "00000.png")
    arguments = ["--known", image, "--label", "cat", "--n", "3"]
    assert sample(tmp_path / "all", *arguments, "--keep", "1") == 0
    assert sample(tmp_path / "half", *arguments, "--keep", "0.5", "--seed", "1") == 0
    copies = [pixels(tmp_path / "all" / "images" / f"0000{n}.png") for n in range(3)]
    assert torch.equal(copies[0], copies[1])
    half = [pixels(tmp_path / "half" / "images" / f"0000{n}.png") for n in range(3)]
    assert not torch.equal(half[0], half[1])
    # Far above the part that was drawn, all depend on the same codes.
    rows = 16 * 3 * 2
    assert torch.equal(half[0][:rows], copies[0][:rows])
    assert column(tmp_path / "half", "known") == [0, 0, 0]


def test_known_images_take_turns_and_their_classes_with_them(sample, tmp_path, column):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randint(13, (2, size, size), generator=generator) for size in (4, 8)]
    labels = torch.tensor([2, -1])
    encode = lambda *_: [(maps, labels)]  # noqa: E731
    write_codes(
        tmp_path / "codes", encode, 2, 13, [(4, 4), (8, 8)], class_names=("cat", "cow", "dog")
    )
    out = tmp_path / "out"
    assert sample(out, "--known", str(tmp_path / "codes"), "--n", "3", "--keep", "0.25") == 0
    assert column(out, "known") == [0, 1, 0]
    assert column(out, "class") == ["dog", None, "dog"]
    with Image.open(out / "samples.png") as picture:
        assert picture.width > picture.height  # a row: the image, two completions


def test_a_store_without_classes_is_completed_in_the_class_that_is_named(
    sample, sample_error, tmp_path, column
):
    maps = [torch.zeros(2, size, size, dtype=torch.int64) for size in (4, 8)]
    encode = lambda *_: [(maps, torch.tensor([-1, -1]))]  # noqa: E731
    write_codes(tmp_path / "codes", encode, 2, 13, [(4, 4), (8, 8)])
    options = ("--known", str(tmp_path / "codes"), "--n", "2")
    error = sample_error(tmp_path / "out", *options)
    assert "expected a class, because the known images have none. Name a class" in error
    assert sample(tmp_path / "out", *options, "--label", "cow") == 0
    assert column(tmp_path / "out", "class") == ["cow", "cow"]


def test_each_known_image_is_completed_in_every_class(sample, tmp_path, column):
    for number in range(2):
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), (9 * number, 60, 200)).save(folder / f"{number}.png")
    arguments = ["--known", str(tmp_path / "photos"), "--label", "cat", "dog", "--n", "4"]
    assert sample(tmp_path / "out", *arguments) == 0
    assert column(tmp_path / "out", "known") == [0, 1, 0, 1]
    assert column(tmp_path / "out", "class") == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(
    ("content", "setting"), [(b"no image", "skip_corrupt"), (None, "skip_small")]
)
def test_a_known_image_that_cannot_be_used_is_left_out_if_asked(
    sample, sample_error, tmp_path, column, content, setting
):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (20, 16)).save(folder / "0.png")
    Image.new("RGB", (4, 4)).save(folder / "1.png")
    if content is not None:
        (folder / "1.png").write_bytes(content)
    options = ("--known", str(folder), "--label", "cat", "--n", "2")
    assert f"set {setting} to leave out such" in sample_error(tmp_path / "out", *options)
    with pytest.warns(UserWarning, match="skipped 1 of 2 images"):
        assert sample(tmp_path / "out", *options, f"--{setting}") == 0
    assert column(tmp_path / "out", "known") == [0, 0]


def test_a_painted_hole_is_filled_as_the_library_does(pipelines, sample, tmp_path, column, pixels):
    photo = Image.new("RGB", (40, 32), (20, 60, 200))
    photo.paste((250, 90, 10), (14, 6, 26, 20))
    photo.save(tmp_path / "photo.png")
    mask = Image.new("L", (40, 32))
    mask.putpixel((4 + 2 * 9, 2 * 5), 255)  # of the 16x16 pixels, the one in column 9, row 5
    mask.save(tmp_path / "mask.png")
    known = ["--known", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
    arguments = [*known, "--candidates", "5", "--label", "cow", "--n", "2", "--seed", "3"]
    assert sample(tmp_path / "out", *arguments) == 0
    pipeline = load(pipelines / "classes")
    with open(tmp_path / "photo.png", "rb") as file:
        image = to_float(decode_image(file, "", (3, 16, 16), convert_channels=False))
    pixels_drawn = torch.zeros(16, 16, dtype=torch.bool)
    pixels_drawn[5, 9] = True
    images, effective = fill(
        pipeline, image.repeat(2, 1, 1, 1), pixels_drawn, candidates=5, labels=["cow"] * 2, seed=3
    )
    for n in range(2):
        shown = images[n].permute(1, 2, 0)  # [H, W, C]
        found = pixels(tmp_path / "out" / "images" / f"0000{n}.png")
        assert torch.equal(found, to_uint8(shown).flatten())
    told = [list(levels.values()) for levels in column(tmp_path / "out", "effective_candidates")]
    torch.testing.assert_close(torch.tensor(told), effective.float(), atol=0.006, rtol=0)


def test_a_hole_is_part_of_what_a_resumed_run_keeps_to(sample, sample_error, tmp_path):
    Image.new("RGB", (16, 16), (20, 60, 200)).save(tmp_path / "photo.png")
    for name, value in (("all", 255), ("half", 0)):
        mask = Image.new("L", (16, 16), 255)
        mask.paste(value, (0, 0, 16, 8))
        mask.save(tmp_path / f"{name}.png")

    out, options = tmp_path / "out", f"--known {tmp_path}/photo.png --label cat --mask {tmp_path}"
    assert sample(out, f"{options}/half.png --n 1") == 0
    assert "settings" in sample_error(out, f"{options}/all.png --n 2 --resume")
    assert "settings" in sample_error(out, f"{options}/half.png --n 2 --resume --candidates 2")
    assert sample(out, f"{options}/half.png --n 2 --resume") == 0


def test_transparent_pixels_of_a_mask_are_drawn(pipelines, tmp_path):
    Image.new("RGBA", (16, 16), (0, 0, 0, 255)).save(tmp_path / "none.png")
    config = load(pipelines / "classes").vqvae.config
    with pytest.raises(ValueError, match="none.png: expected white or transparent pixels"):
        painted(tmp_path / "none.png", 1, config)
    mask = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    mask.putpixel((3, 7), (0, 0, 0, 0))
    mask.save(tmp_path / "mask.png")
    hole = painted(tmp_path / "mask.png", 1, config)
    assert hole.pixels.nonzero().tolist() == [[7, 3]]
    assert [level.nonzero().tolist() for level in hole.codes] == [[[1, 0]], [[3, 1]]]


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


@pytest.mark.filterwarnings("error")
def test_a_grey_photo_of_three_channels_loses_nothing(sample, tmp_path, known_photos):
    photos = known_photos((9, 9, 9))
    assert sample(tmp_path / "out", f"--n 1 --known {photos}", pipeline="plain") == 0
