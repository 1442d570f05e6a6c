"""Images by the name of their source."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2_fast.data import ImageFolder, ImageTensorDataset
from vqvae2_fast.data.sources import DataOptions, open_images

if TYPE_CHECKING:
    from pathlib import Path


def pixels(seed: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(pixels(seed))


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(8):
        side = "held_out" if number < 2 else "train"
        path = tmp_path / "photos" / side / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return tmp_path / "photos"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_folder_is_read_as_it_is(folder):
    images = open_images(DataOptions(str(folder)), "train", 3, (8, 8))
    assert isinstance(images, ImageFolder)
    assert (len(images), images.class_names) == (6, ("a", "b"))
    assert len(open_images(DataOptions(str(folder)), "held_out", 3, (8, 8))) == 2


def test_a_cache_is_made_once_for_each_split_and_size(folder, tmp_path, monkeypatch):
    options = DataOptions(str(folder), cache=tmp_path / "cache")
    for split, size, count in (("train", 8, 6), ("held_out", 8, 2), ("train", 4, 6)):
        images = open_images(options, split, 3, (size, size))
        assert isinstance(images, ImageTensorDataset)
        assert images.image_shape == (3, size, size)
        assert len(images) == count
    assert len(list((tmp_path / "cache").iterdir())) == 3
    monkeypatch.setattr(ImageFolder, "_decode", lambda *_: pytest.fail("decoded again"))
    again = open_images(options, "train", 3, (8, 8))
    expected = torch.from_numpy(pixels(2)).permute(2, 0, 1)
    assert torch.equal(again[0][0], expected)


def test_nothing_is_written_where_that_is_not_wanted(folder, tmp_path):
    options = DataOptions(str(folder), cache=tmp_path / "cache")
    before = files(tmp_path)
    assert len(open_images(options, "train", 3, (8, 8), write=False)) == 6
    assert files(tmp_path) == before


def test_emoji_are_embedded():
    images = open_images(DataOptions(), "held_out", 3, (16, 16))
    assert (len(images), images.image_shape) == (308, (3, 16, 16))
    assert len(images.class_names) == 9
    fine = open_images(DataOptions("emoji:subcategories"), "held_out", 3, (16, 16))
    assert (len(fine), len(fine.class_names)) == (308, 96)


def test_emoji_for_a_model_of_larger_images_are_refused_as_data():
    with pytest.raises(ValueError, match="^data=emoji: .* takes 3 channels of 64x64. Name the fol"):
        open_images(DataOptions("emoji"), "train", 3, (64, 64))


def test_a_folder_named_as_a_source_is_meant_by_its_path(folder, monkeypatch):
    folder.rename(folder.with_name("emoji"))
    monkeypatch.chdir(folder.parent)
    assert len(open_images(DataOptions("./emoji"), "train", 3, (8, 8))) == 6
    with pytest.warns(UserWarning, match=r"emoji stands for .* For the folder write \./emoji\."):
        assert len(open_images(DataOptions("emoji"), "train", 3, (8, 8))) == 2819


@pytest.mark.parametrize("given", ["fashion:{}", "fashion"])
def test_fashion_are_idx_files(tmp_path, given, monkeypatch):
    monkeypatch.setattr("vqvae2_fast.data.sources.DEBIAN_FOLDER", str(tmp_path))
    for part, count in (("train", 3), ("t10k", 2)):
        head = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(head + bytes(count * 784))
        with gzip.open(tmp_path / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(range(count)))
    options = DataOptions(given.format(tmp_path))
    assert [len(open_images(options, split, 1, (28, 28))) for split in ("train", "held_out")] == [
        3,
        2,
    ]
    with pytest.raises(ValueError, match=r"are \[1, 28, 28\], and the model takes \[3, 32, 32\]"):
        open_images(options, "train", 3, (32, 32))


@pytest.fixture
def hugging_face():
    return pytest.importorskip("datasets", reason="needs vqvae2_fast[hf]")


def hugging_face_set(datasets, count: int, first: int = 0):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    rows = {"image": [picture(first + i) for i in range(count)], "label": [0] * count}
    return datasets.Dataset.from_dict(rows, features=features)


def test_hugging_face_splits_are_those_of_the_set(hugging_face, tmp_path):
    sides = {"train": hugging_face_set(hugging_face, 5), "test": hugging_face_set(hugging_face, 2)}
    hugging_face.DatasetDict(sides).save_to_disk(str(tmp_path / "set"))
    options = DataOptions(f"hf:{tmp_path / 'set'}")
    sizes = [len(open_images(options, s, 3, (8, 8))) for s in ("train", "held_out", "all")]
    assert sizes == [5, 2, 7]
    cached = DataOptions(options.data, cache=tmp_path / "cache")
    images = open_images(cached, "held_out", 3, (8, 8))
    assert torch.equal(images[1][0], torch.from_numpy(pixels(1)).permute(2, 0, 1))
    assert images.class_names == ("a",)


def test_rows_of_a_hugging_face_set_name_files_of_its_folder_alone(hugging_face, tmp_path):
    import pyarrow

    folder = tmp_path / "set"
    hugging_face_set(hugging_face, 2).save_to_disk(str(folder))
    picture(0).save(tmp_path / "private.png")
    picture(1).save(folder / "own.png")
    (arrow,) = folder.glob("*.arrow")
    table = pyarrow.ipc.open_stream(arrow.read_bytes()).read_all()
    rows = [{"bytes": None, "path": p} for p in ("own.png", str(tmp_path / "private.png"))]
    images = pyarrow.array(rows, table.schema.field("image").type)
    table = table.set_column(0, table.schema.field("image"), images)
    with pyarrow.ipc.new_stream(str(arrow), table.schema) as stream:
        stream.write_table(table)
    images = open_images(DataOptions(f"hf:{folder}"), "all", 3, (8, 8))
    assert torch.equal(images[0][0], torch.from_numpy(pixels(1)).permute(2, 0, 1))
    with pytest.raises(ValueError, match=r"private\.png leads out of .*set"):
        images[1]


def test_a_hugging_face_set_without_a_test_split_is_divided(hugging_face, tmp_path):
    hugging_face_set(hugging_face, 40).save_to_disk(str(tmp_path / "set"))
    options = DataOptions(f"hf:{tmp_path / 'set'}", held_out_fraction=0.3)
    sides = [open_images(options, split, 3, (8, 8)) for split in ("train", "held_out")]
    assert 5 < len(sides[1]) < 20
    seen = {side[i][0].numpy().tobytes() for side in sides for i in range(len(side))}
    assert len(seen) == len(sides[0]) + len(sides[1]) == 40


@pytest.fixture
def shards(tmp_path) -> str:
    pytest.importorskip("braceexpand", reason="needs vqvae2_fast[webdataset]")
    for shard in range(2):
        with tarfile.open(tmp_path / f"photos-{shard}.tar", "w") as archive:
            for number in range(20):
                png = io.BytesIO()
                picture(shard * 20 + number).save(png, "PNG")
                members = {"png": png.getvalue(), "cls": str(number % 3).encode()}
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{number}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return f"webdataset:{tmp_path}/photos-{{0..1}}.tar"


def test_a_web_dataset_is_divided_by_its_keys(shards, tmp_path):
    options = DataOptions(shards, cache=tmp_path / "cache", held_out_fraction=0.3)
    sides = [open_images(options, split, 3, (8, 8)) for split in ("train", "held_out")]
    assert 5 < len(sides[1]) < 20
    seen = {side[i][0].numpy().tobytes() for side in sides for i in range(len(side))}
    assert len(seen) == len(sides[0]) + len(sides[1]) == 40
    assert sides[0].class_names == sides[1].class_names == ("0", "1", "2")
    # The same key in two shards may fall on different sides.
    names = [set(side.names) for side in sides]
    assert names[0] & names[1]


def test_a_web_dataset_needs_a_cache_but_not_to_be_looked_at(shards, tmp_path):
    before = files(tmp_path)
    with pytest.raises(ValueError, match="decoded into a cache first; name its folder by cache="):
        open_images(DataOptions(shards), "train", 3, (8, 8))
    images = open_images(DataOptions(shards), "all", 3, (8, 8), write=False)
    assert torch.equal(images[39][0], torch.from_numpy(pixels(39)).permute(2, 0, 1))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "data: expected the folder .* one of `emoji.*`, `fashion.*`, .*, got nowhere"),
        ("photoz/", "got photoz/, which does not exist"),
        pytest.param(__file__, "which is a file. Name the folder that it is in", id="a file"),
        ("s3:bucket", "data: expected the folder of a data set or one of .* got s3:bucket"),
        ("hf:", "data=hf:: expected the name of a data set"),
        ("webdataset:", "expected tar files"),
        (
            "fashion:nowhere",
            "^data=fashion:nowhere: nowhere has neither train-images-idx3-ubyte nor",
        ),
        ("emoji:64", "data=emoji:64: expected emoji or emoji:subcategories"),
    ],
)
def test_names_that_are_no_source_are_told_the_choice(data, message):
    with pytest.raises(ValueError, match=message):
        open_images(DataOptions(data), "train", 3, (32, 32))
