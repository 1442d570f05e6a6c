"""The order of training: what a step holds depends only on the seed and the step."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from helpers.codes import CodeSet
from PIL import Image

from vqvae2_fast.data import (
    ImageFolder,
    ImageTensorDataset,
    batches,
    code_batches,
    in_order,
    to_float,
)
from vqvae2_fast.data.batches import BatchCut


@pytest.fixture
def dataset() -> ImageTensorDataset:
    """Ten images that differ, each with its own label."""
    images = torch.arange(10 * 3 * 2 * 2, dtype=torch.uint8).view(10, 3, 2, 2)
    return ImageTensorDataset(images, torch.arange(10), tuple("abcdefghij"))


def take(iterator, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(islice(iterator, count))


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_images_are_floats_that_belong_to_their_labels(dataset) -> None:
    for images, labels in take(batches(dataset, 4, seed=0), 5):
        assert images.dtype == torch.float32
        assert torch.equal(images, to_float(dataset.images[labels]))


def test_an_epoch_visits_no_image_twice_and_drops_the_rest(dataset) -> None:
    epoch = torch.cat([labels for _, labels in take(batches(dataset, 4, seed=0), 2)])
    assert len(epoch.unique()) == 8


def test_epochs_and_seeds_differ_in_order(dataset) -> None:
    first, second = (labels for _, labels in take(batches(dataset, 10, seed=0), 2))
    other = next(batches(dataset, 10, seed=1))[1]
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_resuming_at_a_step_goes_on_exactly(dataset, start) -> None:
    options = {"seed": 5, "flip": True, "crop_padding": 1}
    whole = take(batches(dataset, 4, **options), 12)
    resumed = take(batches(dataset, 4, **options, start_step=start), 12 - start)
    assert same(whole[start:], resumed)


def test_flip_mirrors_about_half_left_to_right(dataset) -> None:
    flipped = total = 0
    for images, labels in take(batches(dataset, 10, seed=0, flip=True), 40):
        plain = to_float(dataset.images[labels])
        for image, original in zip(images, plain, strict=True):
            mirrored = torch.equal(image, original.flip(-1))
            assert mirrored or torch.equal(image, original)
            flipped, total = flipped + mirrored, total + 1
    assert 0.4 < flipped / total < 0.6


def test_flips_do_not_change_the_order(dataset) -> None:
    plain = [labels for _, labels in take(batches(dataset, 4, seed=3), 6)]
    flipped = [labels for _, labels in take(batches(dataset, 4, seed=3, flip=True), 6)]
    assert all(torch.equal(a, b) for a, b in zip(plain, flipped, strict=True))


def test_order_is_pinned(dataset) -> None:
    """A run resumes correctly under another version only if this order stays the same."""
    assert next(batches(dataset, 10, seed=0))[1].tolist() == [6, 8, 3, 1, 9, 4, 2, 0, 7, 5]


def test_the_global_generator_is_left_alone(dataset, folder) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(batches(dataset, 4, seed=0, flip=True), 3)
    take(batches(folder, 4, seed=0, flip=True), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def folder(tmp_path) -> ImageFolder:
    for i in range(10):
        (tmp_path / f"class{i}").mkdir()
        pixels = np.random.default_rng(i).integers(0, 256, (2, 3, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"class{i}" / "x.png")
    return ImageFolder(tmp_path, (2, 3))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_gives_the_same_steps_as_its_copy_in_memory(folder, workers) -> None:
    memory = take(batches(folder.in_memory(), 4, seed=2, start_step=1, flip=True), 5)
    iterator = batches(folder, 4, seed=2, start_step=1, flip=True, num_workers=workers)
    assert same(memory, take(iterator, 5))


@pytest.mark.parametrize("count", [0, 11, -1])
def test_batch_size_out_of_range_is_named(dataset, count) -> None:
    with pytest.raises(ValueError, match=rf"expected batch_size .* from 1 to 10, got {count}"):
        batches(dataset, count, seed=0)


@pytest.mark.parametrize("function", ["batches", "in_order"])
def test_a_list_is_no_set_of_images(function) -> None:
    called = {
        "batches": lambda images: batches(images, 2, seed=0),
        "in_order": lambda images: in_order(images, 2),
    }[function]
    with pytest.raises(TypeError, match="expected dataset .* got list.*ImageTensorDataset"):
        called([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 4)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_process_that_is_not_there_is_refused(dataset, rank) -> None:
    message = f"expected rank to be an integer from 0 to 1, got {rank}"
    with pytest.raises(ValueError, match=f"{message}"):
        in_order(dataset, 2, rank=rank, world_size=2)
    with pytest.raises(ValueError, match=f"{message}"):
        BatchCut(12, 1, rank, 2)
    with pytest.raises(ValueError, match="expected accumulate .* got 0"):
        BatchCut(12, 0)


def test_in_order_gives_each_image_once_with_a_short_last_batch(dataset, folder) -> None:
    for source in (dataset, folder):
        parts = list(in_order(source, 4))
        assert [len(images) for images, _ in parts] == [4, 4, 2]
        assert torch.equal(torch.cat([labels for _, labels in parts]), torch.arange(10))
    assert torch.equal(torch.cat([i for i, _ in in_order(dataset, 4)]), to_float(dataset.images))


def test_in_order_gives_a_range(dataset, folder) -> None:
    for source in (dataset, folder):
        parts = [labels.tolist() for _, labels in in_order(source, 3, start=2, stop=9)]
        assert parts == [[2, 3, 4], [5, 6, 7], [8]]
        assert list(in_order(source, 3, start=4, stop=4)) == []


@pytest.mark.parametrize("span", [(-1, 3), (4, 3), (0, 11)])
def test_in_order_refuses_a_range_outside_the_set(dataset, span) -> None:
    with pytest.raises(ValueError, match=f"range of the 10 images .* got {span[0]} and {span[1]}"):
        in_order(dataset, 2, start=span[0], stop=span[1])


def test_code_batches_follow_the_order_of_images(dataset, tmp_path) -> None:
    top = torch.arange(10).view(10, 1, 1)
    bottom = top * 10 + torch.arange(4).view(1, 2, 2)
    codes = CodeSet([top, bottom], 128, dataset.labels, dataset.class_names).write(tmp_path)
    images = take(batches(dataset, 4, seed=1, start_step=3), 4)
    for (_, expected), (maps, labels) in zip(
        images, take(code_batches(codes, 4, seed=1, start_step=3), 4), strict=True
    ):
        assert torch.equal(labels, expected)
        assert [level.dtype for level in maps] == [torch.int64, torch.int64]
        assert torch.equal(maps[0], top[labels])
        assert torch.equal(maps[1], bottom[labels])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_by_any_process(tmp_path, num_workers) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    folder = ImageFolder(tmp_path, 4)
    (tmp_path / "b.png").write_bytes(b"damage")
    with pytest.raises(ValueError, match=r"^.*b\.png cannot be decoded"):
        list(in_order(folder, 1, num_workers=num_workers))
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        list(in_order(folder, 1, num_workers=num_workers))
    assert error.value.filename == str(tmp_path / "b.png")
