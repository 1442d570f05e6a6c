"""The embedded emoji and the script that builds them."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqvae2_fast.data.emoji as emoji
from vqvae2_fast.data import EMOJI_CLASSES, ImageFolder, load_emoji
from vqvae2_fast.data.groups import GroupedImages

TOOL = Path(__file__).parents[2] / "tools" / "build_emoji_sheet.py"
LABELS = Path(emoji.__file__).parent / "fluent_emoji" / "labels.csv"


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    with LABELS.open(encoding="utf-8", newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def whole():
    return load_emoji("all")


@pytest.fixture(scope="module")
def sides():
    return load_emoji("train"), load_emoji("held_out")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("build_emoji_sheet", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_emoji_have_the_documented_shape_and_class_counts(whole) -> None:
    assert whole.images.shape == (3127, 3, 32, 32)
    counts = whole.labels.bincount().tolist()
    assert dict(zip(whole.class_names, counts, strict=True)) == {
        "Activities": 85,
        "Animals & Nature": 157,
        "Flags": 8,
        "Food & Drink": 128,
        "Objects": 261,
        "People & Body": 1881,
        "Smileys & Emotion": 166,
        "Symbols": 223,
        "Travel & Places": 218,
    }


def test_no_country_flag_is_embedded(table) -> None:
    regional = [key for key in table if re.search("1f1[ef][0-9a-f]|e00[67]", key)]
    assert regional == []


def test_the_splits_partition_the_set(whole, sides) -> None:
    train, held_out = sides
    assert (len(train), len(held_out)) == (2819, 308)
    assert set(train.names) | set(held_out.names) == set(whole.names)
    assert set(train.names) & set(held_out.names) == set()


def test_no_group_is_on_both_sides(table, sides) -> None:
    train, held_out = ({table[name]["group"] for name in side.names} for side in sides)
    assert (len(train), len(held_out)) == (1268, 138)
    assert train & held_out == set()


def test_skin_and_gender_variants_share_a_group(table) -> None:
    """Independent of the script's rule: according to Unicode, these differ only in modifiers."""
    by_base: dict[str, set[str]] = {}
    for key, row in table.items():
        base = re.sub("-1f3f[b-f]|-200d-264[02]", "", key)
        base = re.sub("^(1f468|1f469|1f9d1)(?=-200d|$)", "person", base)
        by_base.setdefault(base, set()).add(row["group"])
    assert [base for base, groups in by_base.items() if len(groups) > 1] == []


def test_every_class_is_held_out_in_part(sides) -> None:
    assert sides[1].labels.bincount(minlength=9).min() >= 2


def test_tiles_carry_the_right_labels(whole) -> None:
    """The picture under a key is that emoji: it has colours that no other emoji has."""
    at = {name: whole.images[i].float() for i, name in enumerate(whole.names)}
    red_heart, green_heart, blue_heart = at["2764"], at["1f49a"], at["1f499"]
    centre = (slice(None), slice(12, 18), slice(12, 18))
    assert red_heart[centre].mean((1, 2)).argmax() == 0
    assert green_heart[centre].mean((1, 2)).argmax() == 1
    assert blue_heart[centre].mean((1, 2)).argmax() == 2
    assert whole.labels[whole.names.index("1f981")] == EMOJI_CLASSES.index("Animals & Nature")


def test_subcategories_are_classes_of_the_nine_groups(whole) -> None:
    fine = load_emoji("all", subcategories=True)
    assert len(fine.class_names) == 96
    groups = GroupedImages(fine)
    assert groups.class_names == EMOJI_CLASSES
    assert torch.equal(groups.labels, whole.labels)
    names = dict(zip(fine.names, fine.labels.tolist(), strict=True))
    assert fine.class_names[names["1f34e"]] == "Food & Drink - food-fruit"


def test_background_is_white(whole) -> None:
    corners = whole.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float()
    assert corners.median() == 255
    assert (corners > 250).float().mean() > 0.9


def test_smaller_sizes_are_averages_of_the_tiles(whole) -> None:
    small = load_emoji("all", size=8).images
    expected = torch.nn.functional.avg_pool2d(whole.images.float(), 4)
    assert small.shape == (3127, 3, 8, 8)
    assert (small.float() - expected).abs().max() <= 0.5


@pytest.mark.parametrize("size", [64, 24, 0])
def test_other_sizes_name_the_remedy(size) -> None:
    with pytest.raises(ValueError, match=rf"must divide 32, got {size}\. .*--folder OUT"):
        load_emoji(size=size)


def _art(colour: tuple[int, int, int], height: int = 256) -> bytes:
    """A disc of one colour on transparency, as the package's WebP files are."""
    y, x = np.mgrid[:height, :256]
    inside = (y - height / 2) ** 2 + (x - 128) ** 2 < 100**2
    pixels = np.zeros((height, 256, 4), np.uint8)
    pixels[inside] = (*colour, 255)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.fixture
def package(tmp_path) -> Path:
    """A .tgz laid out as npm's: four emoji, one spelt twice, one file that is too high."""
    files = {
        "0023-fe0f-20e3.webp": _art((0, 0, 0)),
        "23-fe0f-20e3.webp": _art((200, 30, 30)),
        "1f9d1-1f3fb-200d-1f33e.webp": _art((30, 200, 30), height=264),
        "1f33e.webp": _art((30, 30, 200)),
        "1f1e6-1f1e8.webp": _art((9, 9, 9)),
    }
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/assets/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def labels(tmp_path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(
        "key,category,subcategory,short_name,skin_variant\n"
        "1f33e,Animals & Nature,plant,rice,0\n"
        "1f9d1-1f3fb-200d-1f33e,People & Body,person-role,farmer,1\n"
        "23-20e3,Symbols,keycap,hash,0\n"
    )
    return path


def test_script_builds_a_sheet_that_decodes_to_the_art(tool, package, labels, tmp_path) -> None:
    tool.main([str(package), "--labels", str(labels), "--out", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "sheet.webp") as sheet:
        tiles = emoji.tiles_of_sheet(sheet, 3)
    colours = [(30, 30, 200), (30, 200, 30), (200, 30, 30)]
    for tile, colour in zip(tiles, colours, strict=True):
        assert np.abs(tile[12:20, 12:20].astype(int) - colour).max() <= 6
        assert tile[0, 0].min() >= 250


def test_embedded_groups_are_those_of_the_script(tool, table) -> None:
    assert {key: row["group"] for key, row in table.items()} == {
        key: tool.base_group(key) for key in table
    }


def test_script_writes_a_class_folder_with_the_embedded_split(
    tool, package, labels, tmp_path
) -> None:
    rows = [f"1f468-200d-1f{i:x},Objects,x,x,0\n" for i in range(0x400, 0x440)]
    labels.write_text(labels.read_text() + "".join(rows))
    with tarfile.open(package, "w:gz") as tar:
        names = ["1f33e", "1f9d1-1f3fb-200d-1f33e", "23-fe0f-20e3"]
        for name in names + [row.split(",")[0] for row in rows]:
            content = _art((30, 30, 200))
            member = tarfile.TarInfo(f"package/assets/{name}.webp")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    out = tmp_path / "folder"
    tool.main([str(package), "--labels", str(labels), "--folder", str(out), "--size", "48"])
    held_out = ImageFolder(out, 48, split="held_out")
    assert held_out[0][0].shape == (3, 48, 48)
    assert len(ImageFolder(out, 48, split="all")) == 67
    groups = {tool.base_group(Path(name).stem) for name in held_out.names}
    assert {emoji.side_of_group(group) for group in groups} == {"held_out"}


def test_script_knows_an_emoji_in_any_spelling(tool) -> None:
    assert tool.key_of_file("0023-fe0f-20e3.webp") == "23-20e3"
    assert tool.key_of_file("1F9D1_1f3fb-200d-2695-FE0F.webp") == "1f9d1-1f3fb-200d-2695"
