"""WebDataset shards as an image source; most tests need the extra `webdataset`."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2_fast.data import load_web_dataset

if TYPE_CHECKING:
    from pathlib import Path


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "webdataset", raising=False)
    sys.path_importer_cache.clear()
    with pytest.raises(RuntimeError, match=r"pip install 'vqvae2_fast\[webdataset\]'"):
        load_web_dataset("x.tar", 6, tmp_path)


@pytest.fixture
def package() -> None:
    pytest.importorskip("webdataset", reason="needs vqvae2_fast[webdataset]")


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(package, tmp_path) -> str:
    for shard in range(3):
        members = {}
        for i in range(shard * 40, shard * 40 + 40):
            members[f"{i:04}.png"] = png(i)
            if i % 4:
                members[f"{i:04}.cls"] = str(i % 4 - 1).encode()
        write(tmp_path / "sh ards" / f"train-{shard:03}.tar", members)
    return str(tmp_path / "sh ards" / "train-{000..002}.tar")


def test_all_samples_are_there_in_order(shards, tmp_path) -> None:
    dataset = load_web_dataset(shards, (9, 12), tmp_path / "cache", class_names="abc")
    assert len(dataset) == 120
    assert dataset.names[45] == "0045"
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.labels.tolist() == [i % 4 - 1 for i in range(120)]
    for i in (0, 64, 119):
        assert torch.equal(dataset.images[i], torch.from_numpy(pixels(i)).permute(2, 0, 1))


def test_classes_are_numbered_where_no_names_are_given(shards, tmp_path) -> None:
    assert load_web_dataset(shards, 6, tmp_path / "c").class_names == ("0", "1", "2")


def test_shards_are_read_once_until_one_changes(shards, tmp_path, monkeypatch) -> None:
    seen: list[int] = []
    load_web_dataset(shards, 6, tmp_path / "c", progress=seen.append)
    assert seen == [64]
    load_web_dataset(shards, 6, tmp_path / "c", progress=seen.append)
    assert seen == [64]
    write(tmp_path / "sh ards" / "train-001.tar", {"x.png": png(7)})
    dataset = load_web_dataset(shards, 6, tmp_path / "c", progress=seen.append)
    assert len(dataset) == 81
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_labels_are_read_from_json(package, tmp_path) -> None:
    write(tmp_path / "a.tar", {"a.png": png(0), "a.json": b'{"label": 2}'})
    dataset = load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c", label_key="json")
    assert dataset.labels.tolist() == [2]


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_pickles_in_a_shard_are_never_opened(package, tmp_path) -> None:
    members = {"a.png": png(0), "a.pyd": pickle.dumps(Harmful()), "a.pkl": pickle.dumps(Harmful())}
    write(tmp_path / "a.tar", members)
    assert len(load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c")) == 1


@pytest.mark.parametrize("shard", ["pipe:touch {}/harm", "http://127.0.0.1/a.tar", "none.tar", ""])
def test_only_local_files_are_read(package, tmp_path, shard) -> None:
    with pytest.raises(ValueError, match="is no local file"):
        load_web_dataset([shard.format(tmp_path)], 6, tmp_path / "c")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"a.txt": b"x"}, "sample a of .* must hold one image .* holds txt"),
        ({"a.png": png(0), "a.jpg": png(0)}, "must hold one image"),
        ({"a.png": b"no image"}, "sample a of .* cannot be decoded"),
        ({"a.png": png(0), "a.cls": b"cat"}, "cls holds no label"),
        ({"a.png": png(0), "a.cls": b"-2"}, "cls holds label -2"),
        ({"a.png": png(0), "a.cls": b"3"}, "has label 3 of 3 classes"),
    ],
    ids=["none", "two", "corrupt", "text", "negative", "large"],
)
def test_bad_samples_are_named(package, tmp_path, members, text) -> None:
    write(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=text):
        load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c", class_names="abc")
    assert list((tmp_path / "c").iterdir()) == []


def test_images_too_small_or_of_other_channels_are_named(package, tmp_path) -> None:
    write(tmp_path / "a.tar", {"a.png": png(0)})
    with pytest.raises(ValueError, match="is 9x12 .* smaller than image_size 10x10"):
        load_web_dataset(tmp_path / "a.tar", 10, tmp_path / "c")
    with pytest.raises(ValueError, match="has 3 channel"):
        load_web_dataset(tmp_path / "a.tar", 6, tmp_path / "c", image_channels=1)


def test_a_cut_shard_is_refused(shards, tmp_path) -> None:
    path = tmp_path / "sh ards" / "train-001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match="a shard is damaged"):
        load_web_dataset(shards, 6, tmp_path / "c")
