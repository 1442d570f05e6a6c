"""Extraction: which records a store holds, and that interruptions leave no trace in it."""

from __future__ import annotations

import pytest
import torch
from helpers.models import SMALL_VQVAE

from vqvae2_fast.data import CodeStore, ImageTensorDataset, augment, to_float, verify
from vqvae2_fast.data.words import words_of_codes
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.training import Variants, extract_codes, extraction

COUNT = 13


def model(seed: int = 0) -> VQVAE2:
    torch.manual_seed(seed)
    made = VQVAE2(SMALL_VQVAE)
    made(to_float(images().images))  # in training mode: starts the codebooks
    return made.eval()


def images(seed: int = 5, size: int = 8) -> ImageTensorDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (COUNT, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageTensorDataset(pixels, torch.arange(COUNT) % 3, ("a", "b", "c"))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Batches of 4, so that shards end and interruptions fall within them."""
    monkeypatch.setattr(extraction, "_BATCH", 4)


def files(path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


class Interrupted(Exception):
    pass


def break_off(monkeypatch, after: int) -> None:
    """Makes the model fail after it has encoded this many batches."""
    encode, calls = VQVAE2.encode, [0]

    def failing(self, batch):
        calls[0] += 1
        if calls[0] > after:
            raise Interrupted
        return encode(self, batch)

    monkeypatch.setattr(VQVAE2, "encode", failing)


@pytest.mark.parametrize(
    ("variants", "kinds"),
    [(Variants(flip=True, copies=2), [0, 1, 2, 2]), (Variants(copies=2), [0, 1, 1])],
)
def test_mirrored_images_are_of_one_kind_and_copies_of_another(tmp_path, variants, kinds):
    store = extract_codes(model(), images(), tmp_path, variants=variants)
    expected = torch.tensor(kinds).repeat_interleave(COUNT)
    assert torch.equal(extraction.variants_of(store), expected)
    some = torch.tensor([2 * COUNT, 1, COUNT])
    assert torch.equal(extraction.variants_of(store.select(some)), expected[some])


def test_an_image_that_was_not_mirrored_is_as_it_is(tmp_path):
    variants = Variants(flip=True, unflipped=("b",), copies=1)
    kinds = extraction.variants_of(extract_codes(model(), images(), tmp_path, variants=variants))
    mirrored = (torch.arange(COUNT) % 3 != 1).long()  # all but those of class b
    expected = [torch.zeros_like(mirrored), mirrored, torch.full_like(mirrored, 2)]
    assert torch.equal(kinds, torch.cat(expected))


def test_words_are_kept_of_images_with_attributes(tmp_path):
    described = images()
    described.attributes = [{"hair": "long" if n == 1 else "short"} for n in range(COUNT)]
    store = extract_codes(
        model(), described, tmp_path, variants=Variants(flip=True), words=["hair"]
    )
    names, words = words_of_codes(store)
    assert names == ("hair=long", "hair=short")
    assert (words[:, 0] == 0).nonzero().flatten().tolist() == [1, COUNT + 1]


def test_words_of_images_without_attributes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="words: expected images with attributes, such as avatars"):
        extract_codes(model(), images(), tmp_path, words=["hair"])


def test_a_store_that_was_not_extracted_has_no_variants(tmp_path):
    store = extract_codes(model(), images(), tmp_path, variants=Variants(flip=True))
    (tmp_path / "extraction.json").unlink()
    with pytest.raises(ValueError, match="expected codes of images and of changed ones"):
        extraction.variants_of(store)


@pytest.mark.parametrize(
    "settings",
    [
        '{"copies": [1]}',
        '{"copies": 1e999}',
        '{"copies": "x"}',
        '{"copies": -1}',
        '{"flip": 1}',
        '{"unflipped": 3}',
        '{"flip": true, "unflipped": [3]}',
        '{"unflipped": ["a"]}',
    ],
)
def test_settings_of_wrong_types_are_refused_with_the_files_name(tmp_path, settings):
    store = extract_codes(model(), images(), tmp_path)
    (tmp_path / "extraction.json").write_text(settings)
    with pytest.raises(ValueError, match=r"extraction\.json is damaged"):
        extraction.variants_of(store)


def test_records_are_the_images_their_mirrors_and_their_copies(tmp_path):
    vqvae, dataset = model(), images()
    store = extract_codes(
        vqvae, dataset, tmp_path, variants=Variants(flip=True, copies=2, shift=3, seed=7)
    )
    assert len(store) == 4 * COUNT
    assert all(len(maps.unique()) > 4 for maps in store.batch(torch.arange(len(store)))[0])
    assert store.class_names == ("a", "b", "c")
    assert store.labels.tolist() == dataset.labels.tolist() * 4
    every = torch.arange(COUNT)
    versions = [dataset.images, dataset.images.flip(-1)] + [
        augment(dataset.images, every, seed=7, epoch=copy, flip=True, crop_padding=3)
        for copy in (1, 2)
    ]
    for number, pixels in enumerate(versions):
        # In the same batches as extraction, because sums in other batches may differ by rounding.
        expected = [vqvae.encode(to_float(part)) for part in pixels.split(4)]
        found, _ = store.batch(every + number * COUNT)
        for level in range(2):
            wanted = torch.cat([maps[level] for maps in expected])
            assert torch.equal(found[level], wanted), (number, level)
    assert not torch.equal(versions[2], versions[3])


def test_copies_without_flip_are_never_mirrored():
    variants = Variants(copies=1, shift=0)
    batch = torch.rand(COUNT, 3, 8, 8)
    assert variants.count == 2
    assert torch.equal(variants.apply(batch, torch.arange(COUNT), 1), batch)


def test_images_of_unflipped_classes_are_never_mirrored(tmp_path):
    dataset = images()
    options = {"copies": 1, "shift": 2, "seed": 3}
    flipped, some = (
        extract_codes(model(), dataset, tmp_path / name, variants=Variants(flip=True, **more))
        for name, more in (("all", options), ("some", {**options, "unflipped": ("b", "C")}))
    )
    plain = extract_codes(model(), dataset, tmp_path / "plain", variants=Variants(**options))
    every = torch.arange(COUNT)
    fixed = dataset.labels > 0
    # The store with flip has a variant more: the images mirrored.
    for variant, of_plain in ((0, 0), (1, 0), (2, 1)):
        found, of_all = (s.batch(every + variant * COUNT)[0][1] for s in (some, flipped))
        as_it_is = plain.batch(every + of_plain * COUNT)[0][1]
        assert torch.equal(found[fixed], as_it_is[fixed])
        assert torch.equal(found[~fixed], of_all[~fixed])


def test_images_without_a_class_can_be_left_unmirrored():
    labels = Variants(flip=True, unflipped=("none", "b")).labels_unflipped(("a", "b"))
    assert labels.tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"unflipped": ("a",)}, "unflipped=a needs flip"),
        ({"flip": True, "unflipped": ("d",)}, "unflipped: expected .* the beginning of a class"),
    ],
)
def test_unflipped_classes_must_be_there_and_flip_on(tmp_path, variants, message):
    with pytest.raises(ValueError, match=message):
        extract_codes(model(), images(), tmp_path, variants=Variants(**variants))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"zoom": 0.4}, {"colour": 0.5}])
def test_copies_are_zoomed_and_recoloured(change):
    batch, numbers = torch.rand(COUNT, 3, 8, 8) * 2 - 1, torch.arange(COUNT)
    plain = Variants(copies=1, shift=0).apply(batch, numbers, 1)
    changed = Variants(copies=1, shift=0, **change).apply(batch, numbers, 1)
    assert all(not torch.equal(one, other) for one, other in zip(plain, changed, strict=True))


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_an_interrupted_store_ends_byte_for_byte_as_one_made_in_peace(tmp_path, monkeypatch, after):
    variants = Variants(flip=True)
    extract_codes(model(), images(), tmp_path / "peace", variants=variants, shard_records=5)
    with monkeypatch.context() as patch:
        break_off(patch, after)
        with pytest.raises(Interrupted):
            extract_codes(
                model(), images(), tmp_path / "broken", variants=variants, shard_records=5
            )
    extract_codes(model(), images(), tmp_path / "broken", variants=variants, shard_records=5)
    assert files(tmp_path / "broken") == files(tmp_path / "peace")


def test_going_on_encodes_only_what_is_missing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        break_off(patch, 3)
        with pytest.raises(Interrupted):
            extract_codes(model(), images(), tmp_path, shard_records=4)
    encoded = []
    encode = VQVAE2.encode
    monkeypatch.setattr(
        VQVAE2, "encode", lambda self, batch: encoded.append(len(batch)) or encode(self, batch)
    )
    extract_codes(model(), images(), tmp_path, shard_records=4)
    assert encoded == [1]  # 12 of 13 were there
    extract_codes(model(), images(), tmp_path, shard_records=4)
    assert encoded == [1]


def test_ranks_write_the_records_of_one_process(tmp_path):
    alone = extract_codes(model(), images(), tmp_path / "alone", variants=Variants(copies=1))
    for rank in (2, 0, 1):
        shared = extract_codes(
            model(),
            images(),
            tmp_path / "shared",
            variants=Variants(copies=1),
            rank=rank,
            world_size=3,
        )
    assert shared.complete
    every = torch.arange(2 * COUNT)
    for mine, other in zip(shared.batch(every)[0], alone.batch(every)[0], strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(shared.labels, alone.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": -1}, "expected workers .* got -1"),
        ({"variants": Variants(copies=1, shift=8)}, "shift must be below 8, .* got 8"),
    ],
    ids=["workers", "shift"],
)
def test_a_wrong_argument_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        extract_codes(model(), images(), tmp_path / "codes", **change)
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": Variants(copies=1, seed=1)}, "was begun with seed 0, not 1"),
        ({"variants": Variants(copies=1, shift=1)}, "was begun with shift 2, not 1"),
        ({"variants": Variants(copies=1, zoom=0.1)}, "was begun with zoom 0.0, not 0.1"),
        ({"variants": Variants(flip=True)}, "was begun with flip False, not True"),
        ({"images": images(6)}, "was begun with other images. Continue it with the same"),
        ({"model": model(1)}, "checkpoint_hash"),
    ],
    ids=["seed", "shift", "zoom", "flip", "images", "model"],
)
def test_a_store_of_something_else_is_not_gone_on_with(tmp_path, change, message):
    given = {"model": model(), "images": images(), "variants": Variants(copies=1)}
    extract_codes(given["model"], given["images"], tmp_path, variants=given["variants"])
    before = files(tmp_path)
    given |= change
    with pytest.raises(ValueError, match=message):
        extract_codes(given["model"], given["images"], tmp_path, variants=given["variants"])
    assert files(tmp_path) == before


@pytest.mark.parametrize("setting", [{"shift": 0}, {"zoom": 0.1}, {"colour": 0.1}, {"seed": 1}])
def test_settings_of_copies_need_some(setting):
    (text,) = (f"{name}={value}" for name, value in setting.items())
    with pytest.raises(ValueError, match=f"{text} needs copies=1 or more"):
        Variants(flip=True, **setting)


def test_a_full_disk_keeps_what_was_saved_and_the_next_call_goes_on(small_disk, monkeypatch):
    monkeypatch.setattr(extraction, "_BATCH", COUNT)  # there are many records
    variants, path = Variants(copies=200), small_disk.folder / "codes"
    with monkeypatch.context() as patch:
        break_off(patch, 75)
        with pytest.raises(Interrupted):
            extract_codes(model(), images(), path, variants=variants, shard_records=900)
    before = files(path)
    assert len(CodeStore(path)) == 900
    small_disk.fill(4 * 1024)  # a shard has 12 bytes per record
    with pytest.raises(OSError, match="cannot write to .* and continue with the same images"):
        extract_codes(model(), images(), path, variants=variants, shard_records=900)
    assert files(path) == before
    small_disk.clear()
    store = extract_codes(model(), images(), path, variants=variants, shard_records=900)
    assert len(store) == 201 * COUNT
    assert not [report for report in verify(path) if report.problem]


def test_a_store_that_was_not_extracted_is_left_alone(tmp_path):
    extract_codes(model(), images(), tmp_path)
    (tmp_path / "extraction.json").unlink()
    with pytest.raises(ValueError, match="holds codes that were not extracted"):
        extract_codes(model(), images(), tmp_path)
    assert len(CodeStore(tmp_path)) == COUNT


def test_images_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected images .* got \[3, 4, 4\]"):
        extract_codes(model(), images(size=4), tmp_path / "codes")
    assert not (tmp_path / "codes").exists()


def test_the_hash_is_of_the_weights_wherever_they_are(tmp_path):
    first = extract_codes(model(), images(), tmp_path / "first").checkpoint_hash
    assert first == extract_codes(model(), images(), tmp_path / "second").checkpoint_hash
    assert first != extract_codes(model(1), images(), tmp_path / "third").checkpoint_hash


def test_large_images_are_encoded_in_smaller_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "_BATCH_PIXELS", 3 * 8**2)
    sizes, encode = [], VQVAE2.encode

    def seen(self, batch):
        sizes.append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr(VQVAE2, "encode", seen)
    extract_codes(model(), images(), tmp_path, shard_records=5)
    # Whole batches, although a shard ends within one.
    assert set(sizes) == {3, COUNT % 3}


def test_settings_of_another_set_are_refused(tmp_path):
    store = extract_codes(model(), images(), tmp_path)
    (tmp_path / "extraction.json").write_text('{"flip": true}')
    with pytest.raises(ValueError, match="expected 2 times as many records as images"):
        extraction.variants_of(store)
