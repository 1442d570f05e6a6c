"""Folders of images: layouts, geometry, colours, splits, and arguments that are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.images import noise, write_image
from PIL import Image, ImageOps

from vqvae2_fast.data import ImageFolder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def classes(tmp_path) -> Path:
    for i in range(20):
        write_image(tmp_path / "b cats" / f"{i:02}.png", (i, 0, 0))
        write_image(tmp_path / "a dogs" / "deep" / f"{i:02}.png", (0, i, 0))
    return tmp_path


def test_flat_folder_is_read_in_sorted_order_without_labels(tmp_path) -> None:
    for name, red in (("b.png", 2), ("a.png", 1), ("c.bmp", 3)):
        write_image(tmp_path / name, (red, 0, 0))
    (tmp_path / "notes.txt").write_text("no image")
    dataset = ImageFolder(tmp_path, 8)
    assert dataset.names == ("a.png", "b.png", "c.bmp")
    assert [int(dataset[i][0][0, 0, 0]) for i in range(3)] == [1, 2, 3]
    assert (dataset.labels.tolist(), dataset.class_names) == ([-1, -1, -1], ())


def test_subfolders_are_classes_in_sorted_order(classes) -> None:
    dataset = ImageFolder(classes, 8)
    assert dataset.class_names == ("a dogs", "b cats")
    assert dataset.labels.tolist() == [0] * 20 + [1] * 20
    assert dataset[25][0][:, 0, 0].tolist() == [5, 0, 0]


def test_hidden_files_and_folders_are_passed_over(classes) -> None:
    write_image(classes / ".cache" / "x.png", (0, 0, 0))
    write_image(classes / "a dogs" / ".x.png", (0, 0, 0))
    assert len(ImageFolder(classes, 8)) == 40


def test_image_is_cropped_from_the_centre_without_resampling(tmp_path) -> None:
    pixels = noise(16, 30)
    write_image(tmp_path / "a.png", pixels)
    image, _ = ImageFolder(tmp_path, (16, 21))[0]
    assert image.shape == (3, 16, 21)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[:, 4:25])


def test_image_is_scaled_to_cover_a_size_that_is_not_square(tmp_path) -> None:
    # At a quarter of the size, stripes of 4 rows become rows of one colour; columns are cropped.
    rows = np.repeat(np.arange(8, dtype=np.uint8) * 30, 4)
    pixels = np.broadcast_to(rows[:, None, None], (32, 100, 3)).copy()
    pixels[:, :20] = pixels[:, -20:] = 255
    write_image(tmp_path / "a.png", pixels)
    image, _ = ImageFolder(tmp_path, (8, 12))[0]
    assert image.shape == (3, 8, 12)
    assert (image[0, :, 3:9].float() - torch.arange(8.0)[:, None] * 30).abs().max() < 8


def test_scaling_is_antialiased(tmp_path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    write_image(tmp_path / "a.png", board)
    image, _ = ImageFolder(tmp_path, 8, image_channels=1)[0]
    assert (image.float() - 127.5).abs().max() < 3


def test_grey_images_have_one_channel(tmp_path) -> None:
    pixels = noise(8, 8, 1)
    write_image(tmp_path / "a.png", pixels)
    image, _ = ImageFolder(tmp_path, 8, image_channels=1)[0]
    assert np.array_equal(image.numpy(), pixels[None])


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path) -> None:
    pixels = np.array([[0, 300, 40000, 65535]] * 4, np.uint16)
    write_image(tmp_path / "a.png", pixels)
    image, _ = ImageFolder(tmp_path, 4, image_channels=1)[0]
    assert image[0, 0].tolist() == [0, 1, 156, 255]


def test_transparency_lies_on_white(tmp_path) -> None:
    write_image(tmp_path / "a.png", (200, 0, 0, 0))
    assert ImageFolder(tmp_path, 8)[0][0].unique().tolist() == [255]


def test_palette_with_transparent_colour_lies_on_white(tmp_path) -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 0, 200, 0])
    palette.save(tmp_path / "a.png", transparency=bytes([255, 0]))
    assert ImageFolder(tmp_path, 8)[0][0].unique().tolist() == [255]


def test_a_transparent_value_of_16_bits_lies_on_white(tmp_path) -> None:
    pixels = np.array([[0, 300, 40000, 65535]] * 4, np.uint16)
    write_image(tmp_path / "a.png", pixels, transparency=300)
    image, _ = ImageFolder(tmp_path, 4, image_channels=1)[0]
    assert image[0, 0].tolist() == [0, 255, 156, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path, suffix, orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_image(tmp_path / f"a.{suffix}", noise(8, 16), exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        upright = np.array(ImageOps.exif_transpose(image))
    found, _ = ImageFolder(tmp_path, upright.shape[:2])[0]
    assert upright.shape == ((16, 8, 3) if orientation > 4 else (8, 16, 3))
    assert torch.equal(found.permute(1, 2, 0), torch.from_numpy(upright))


def test_channel_mismatch_names_file_and_remedy(tmp_path) -> None:
    write_image(tmp_path / "grey.png", noise(8, 8, 1))
    with pytest.raises(ValueError, match=r"grey\.png has 1 channel.*convert_channels"):
        ImageFolder(tmp_path, 8)


def test_channels_are_converted_on_request(tmp_path) -> None:
    write_image(tmp_path / "a.png", noise(8, 8, 1))
    write_image(tmp_path / "b.png", (255, 0, 0))
    grey, _ = ImageFolder(tmp_path, 8, convert_channels=True)[0]
    red, _ = ImageFolder(tmp_path, 8, image_channels=1, convert_channels=True)[1]
    assert torch.equal(grey[0], grey[2])
    assert red.unique().tolist() == [76]  # 0.299 * 255, ITU-R 601


def test_empty_folder_names_path_and_extensions(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=rf"no images in {tmp_path}; .*\.jpg.*\.png.*\.webp"):
        ImageFolder(tmp_path, 8)


def test_images_beside_class_folders_are_refused(classes) -> None:
    write_image(classes / "stray.png", (0, 0, 0))
    with pytest.raises(ValueError, match=r"both directly \(stray\.png\) and in class folders"):
        ImageFolder(classes, 8)


def test_class_folder_without_images_is_refused(classes) -> None:
    (classes / "c empty").mkdir()
    with pytest.raises(ValueError, match="c empty has no images"):
        ImageFolder(classes, 8)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"image_size": (8, 0)}, r"image_size must be \(height, width\) >= 1"),
        ({"image_size": 2.5}, r"image_size must be .*, or one integer for both, got 2\.5\."),
        ({"image_size": (8, 2.5)}, r"image_size must be .*, got \(8, 2\.5\)"),
        ({"image_channels": 2}, "expected image_channels .* 1, 3, got 2"),
        ({"held_out_fraction": 1.0}, "expected held_out_fraction .* < 1, got 1.0"),
        ({"split": "valid"}, "'train', 'held_out', 'all', got 'valid'"),
        ({"split": "held_out", "held_out_fraction": 0.0}, "split 'held_out' .* is empty"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(classes, arguments, text) -> None:
    with pytest.raises(ValueError, match=text):
        ImageFolder(classes, **{"image_size": 8, **arguments})


def test_of_a_small_folder_one_image_is_held_out(tmp_path) -> None:
    for number in (1, 2, 3):
        write_image(tmp_path / f"{number}.png", (number, 0, 0))
    with pytest.warns(UserWarning, match=r"of 3 images holds out none by hash, so \d\.png is"):
        held_out = ImageFolder(tmp_path, 8, split="held_out", held_out_fraction=0.01)
    with pytest.warns(UserWarning, match="holds out none"):
        train = ImageFolder(tmp_path, 8, split="train", held_out_fraction=0.01)
    assert len(held_out) == 1
    assert sorted(train.names + held_out.names) == ["1.png", "2.png", "3.png"]
    assert len(ImageFolder(tmp_path, 8, split="train", held_out_fraction=0.0)) == 3


def test_split_is_stable_and_partitions(classes) -> None:
    train = ImageFolder(classes, 8, split="train", held_out_fraction=0.3)
    held_out = ImageFolder(classes, 8, split="held_out", held_out_fraction=0.3)
    assert sorted(train.names + held_out.names) == list(ImageFolder(classes, 8).names)
    assert 4 < len(held_out) < 20
    assert train.class_names == held_out.class_names
    for i in range(20, 40):  # more files do not move any old ones
        write_image(classes / "b cats" / f"{i:02}.png", (i, 0, 0))
    again = ImageFolder(classes, 8, split="held_out", held_out_fraction=0.3)
    assert set(held_out.names) <= set(again.names)
    assert not set(train.names) & set(again.names)


def test_a_split_by_hand_is_kept(tmp_path) -> None:
    for i in range(6):
        write_image(tmp_path / "train" / "x" / f"{i}.png", (i, 0, 0))
    write_image(tmp_path / "train" / "y" / "0.png", (50, 0, 0))
    write_image(tmp_path / "held_out" / "y" / "0.png", (60, 0, 0))
    (tmp_path / "held_out" / "x").mkdir()
    write_image(tmp_path / "held_out" / "x" / "9.png", (9, 0, 0))
    held_out = ImageFolder(tmp_path, 8, split="held_out")
    assert held_out.names == ("held_out/x/9.png", "held_out/y/0.png")
    assert held_out.labels.tolist() == [0, 1]
    assert len(ImageFolder(tmp_path, 8, split="train")) == 7
    assert ImageFolder(tmp_path, 8).class_names == ("x", "y")


@pytest.mark.parametrize(
    "sides", [("train", "val"), ("Train", "Held_Out"), ("train", "valid", "test")]
)
def test_folders_of_a_split_with_other_names_are_not_taken_for_classes(tmp_path, sides) -> None:
    for side in sides:
        write_image(tmp_path / side / "x" / "0.png", (1, 0, 0))
    with pytest.raises(ValueError, match=r"look like a split; call .* train/ .* held_out/,"):
        ImageFolder(tmp_path, 8)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_an_empty_side_of_a_split_by_hand_is_named(tmp_path, split) -> None:
    for side in ("train", "held_out"):
        write_image(tmp_path / side / "0.png", (1, 0, 0))
    (tmp_path / split / "0.png").unlink()
    with pytest.raises(ValueError, match=f"no images in {split}/; add some, or remove"):
        ImageFolder(tmp_path, 8, split=split)


def test_a_class_without_training_images_changes_the_key_of_their_cache(tmp_path) -> None:
    write_image(tmp_path / "train" / "x" / "0.png", (1, 0, 0))
    write_image(tmp_path / "held_out" / "x" / "1.png", (2, 0, 0))
    before = ImageFolder(tmp_path, 8, split="train").cache_key()
    write_image(tmp_path / "held_out" / "y" / "2.png", (3, 0, 0))
    assert ImageFolder(tmp_path, 8, split="train").cache_key() != before


def test_in_memory_equals_reading_one_by_one(classes) -> None:
    dataset = ImageFolder(classes, (4, 6), split="train")
    memory = dataset.in_memory()
    assert torch.equal(memory.images, torch.stack([dataset[i][0] for i in range(len(dataset))]))
    assert torch.equal(memory.labels, dataset.labels)
    assert (memory.class_names, memory.names) == (dataset.class_names, dataset.names)
    assert memory.image_shape == dataset.image_shape == (3, 4, 6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pgm_of_16_bits_is_scaled_to_8(tmp_path, channels):
    pixels = np.tile(np.array([0, 300, 40000, 65535], ">u2"), (4, 1))
    (tmp_path / "a.pgm").write_bytes(b"P5 4 4 65535\n" + pixels.tobytes())
    image, _ = ImageFolder(tmp_path, 4, image_channels=channels, convert_channels=True)[0]
    assert image.shape == (channels, 4, 4)
    assert image[0, 0].tolist() == [0, 1, 156, 255]
