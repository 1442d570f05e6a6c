"""Hugging Face data sets as image sources; all but the first test need the extra `hf`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2_fast.data import HuggingFaceImages, batches, cached_images, open_hugging_face


def test_without_the_package_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    sys.path_importer_cache.clear()
    with pytest.raises(RuntimeError, match=r"pip install 'vqvae2_fast\[hf\]'"):
        open_hugging_face("mnist")


def picture(seed: int, size: tuple[int, int] = (9, 12)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture
def source():
    datasets = pytest.importorskip("datasets", reason="needs vqvae2_fast[hf]")
    features = datasets.Features(
        image=datasets.Image(),
        fine=datasets.ClassLabel(names=["a", "b"]),
        text=datasets.Value("string"),
    )
    rows = {"image": [picture(i) for i in range(10)], "fine": [i % 2 for i in range(9)] + [None]}
    return datasets.Dataset.from_dict({**rows, "text": ["x"] * 10}, features=features)


def test_items_are_cropped_images_with_labels(source) -> None:
    dataset = HuggingFaceImages(source, (6, 8))
    assert (len(dataset), dataset.image_shape) == (10, (3, 6, 8))
    assert dataset.class_names == ("a", "b")
    assert dataset.labels.tolist() == [0, 1] * 4 + [0, -1]
    whole = HuggingFaceImages(source, (9, 12))
    for i in (0, 9):
        pixels = torch.from_numpy(np.array(picture(i))).permute(2, 0, 1)
        assert torch.equal(whole[i][0], pixels)
        assert whole[i][1] == whole.labels[i]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_takes_them(source, workers, tmp_path) -> None:
    dataset = HuggingFaceImages(source, 6)
    cached = cached_images(dataset, tmp_path)
    pairs = zip(
        islice(batches(dataset, 4, seed=0, flip=True, num_workers=workers), 5),
        islice(batches(cached, 4, seed=0, flip=True), 5),
        strict=True,
    )
    for (images, labels), (expected, expected_labels) in pairs:
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_the_key_of_a_cache_follows_the_data_and_the_size(source) -> None:
    prints = {
        HuggingFaceImages(data, size).cache_key()
        for data in (source, source.select(range(5)))
        for size in (6, 8)
    }
    assert len(prints) == 4


def test_saved_sets_are_opened_by_split(source, tmp_path) -> None:
    import datasets

    source.save_to_disk(str(tmp_path / "one"))
    assert len(open_hugging_face(tmp_path / "one")) == 10
    datasets.DatasetDict(train=source, test=source.select(range(3))).save_to_disk(
        str(tmp_path / "two")
    )
    assert len(open_hugging_face(tmp_path / "two", "test")) == 3
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        open_hugging_face(tmp_path / "two", "dev")


def test_labels_may_be_left_out(source) -> None:
    dataset = HuggingFaceImages(source, 6, label_column="")
    assert (dataset.labels.tolist(), dataset.class_names) == ([-1] * 10, ())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_column": "text"}, r"expected image_column .* type Image \(image\), got 'text'"),
        ({"label_column": "coarse"}, r"expected label_column .* \(fine\), got 'coarse'"),
        ({"image_channels": 2}, "expected image_channels .* 1, 3"),
    ],
    ids=["image", "label", "channels"],
)
def test_wrong_columns_are_named_with_the_right_ones(source, options, text) -> None:
    with pytest.raises(ValueError, match=text):
        HuggingFaceImages(source, 6, **options)


def test_streams_and_several_splits_are_refused(source) -> None:
    import datasets

    with pytest.raises(TypeError, match="expected a datasets.Dataset, got IterableDataset"):
        HuggingFaceImages(source.to_iterable_dataset(), 6)
    with pytest.raises(TypeError, match="expected one split, got several; choose one of train"):
        HuggingFaceImages(datasets.DatasetDict(train=source), 6)


def with_rows(source, rows: list[dict]):
    """A data set of these images as they would be stored."""
    import datasets
    import pyarrow

    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({"image": pyarrow.array(rows, kind)})
    features = datasets.Features(image=datasets.Image())
    return datasets.Dataset(datasets.table.InMemoryTable(table).cast(features.arrow_schema))


def test_images_of_other_formats_start_no_program(source, tmp_path, monkeypatch) -> None:
    eps = io.BytesIO()
    picture(0).save(eps, "EPS")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    rows = [{"bytes": eps.getvalue(), "path": "a.png"}]
    with pytest.raises(ValueError, match="item 0 of image cannot be decoded"):
        HuggingFaceImages(with_rows(source, rows), 6)[0]


@pytest.mark.parametrize("given", ["absolute", "relative", "link", "remote"])
def test_rows_cannot_read_files_outside_the_folder(source, tmp_path, given) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    picture(0).save(tmp_path / "private.png")
    picture(1).save(folder / "own.png")
    (folder / "link.png").symlink_to("../private.png")
    path = {
        "absolute": str(tmp_path / "private.png"),
        "relative": "../private.png",
        "link": str(folder / "link.png"),
        "remote": "https://127.0.0.1/a.png",
    }[given]
    rows = [{"bytes": None, "path": path}, {"bytes": None, "path": "own.png"}]
    stored = with_rows(source, rows)
    with pytest.raises(ValueError, match="item 0 of image is not in the data set but in the file"):
        HuggingFaceImages(stored, 6)[0]
    dataset = HuggingFaceImages(stored, (9, 12), folder=folder)
    with pytest.raises((ValueError, FileNotFoundError), match="leads out of|No such file"):
        dataset[0]
    assert torch.equal(dataset[1][0], torch.from_numpy(np.array(picture(1))).permute(2, 0, 1))


def change_json(path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_saved_set_names_no_files_outside_its_folder(source, tmp_path) -> None:
    source.save_to_disk(str(tmp_path / "other"))
    source.save_to_disk(str(tmp_path / "set"))
    (arrow,) = (tmp_path / "set").glob("*.arrow")
    state = tmp_path / "set" / "state.json"
    change_json(state, lambda s: s["_data_files"][0].update(filename=f"../other/{arrow.name}"))
    with pytest.raises(ValueError, match="state.json is damaged: _data_files must name its files"):
        open_hugging_face(tmp_path / "set")
    change_json(state, lambda s: s["_data_files"][0].update(filename=arrow.name))
    arrow.unlink()
    arrow.symlink_to(tmp_path / "other" / arrow.name)
    with pytest.raises(ValueError, match=r"\.arrow leads out of"):
        open_hugging_face(tmp_path / "set")
    arrow.unlink()
    os.mkfifo(arrow)
    with pytest.raises(ValueError, match=r"\.arrow is a FIFO"):
        open_hugging_face(tmp_path / "set")


def test_splits_of_a_saved_set_are_names_in_its_folder(source, tmp_path) -> None:
    import datasets

    source.save_to_disk(str(tmp_path / "other"))
    datasets.DatasetDict(train=source).save_to_disk(str(tmp_path / "set"))
    change_json(tmp_path / "set" / "dataset_dict.json", lambda s: s.update(splits=["../other"]))
    with pytest.raises(ValueError, match="dataset_dict.json is damaged: splits must be plain"):
        open_hugging_face(tmp_path / "set", "../other")


def test_a_format_that_hides_columns_is_left_aside(source) -> None:
    dataset = HuggingFaceImages(source.with_format("numpy", columns=["image"]), 6)
    assert dataset.labels.tolist() == [0, 1] * 4 + [0, -1]
    assert dataset[0][0].shape == (3, 6, 6)


def test_a_transform_is_refused_rather_than_ignored(source) -> None:
    with pytest.raises(TypeError, match="without a transform"):
        HuggingFaceImages(source.with_transform(lambda rows: rows), 6)


def test_bad_images_are_named(source) -> None:
    with pytest.raises(ValueError, match="item 3 of image is 9x12 .* smaller than image_size 10x1"):
        HuggingFaceImages(source, 10)[3]
    with pytest.raises(ValueError, match="item 0 of image has 3 channel.s. .* convert_channels"):
        HuggingFaceImages(source, 6, image_channels=1)[0]
    assert HuggingFaceImages(source, 6, image_channels=1, convert_channels=True)[0][0].shape == (
        1,
        6,
        6,
    )
    broken = source.map(lambda row: {"image": {"bytes": b"no image", "path": None}})
    with pytest.raises(ValueError, match="item 2 of image cannot be decoded"):
        HuggingFaceImages(broken, 6)[2]
