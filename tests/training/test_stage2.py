"""Training priors on code stores: which records they see, and which stores are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
from helpers.codes import CodeSet, random_codes
from helpers.models import SMALL_PRIOR, SMALL_TOP
from torch import Tensor

from vqvae2_fast.data import check_matches
from vqvae2_fast.data.groups import labels_of_prior
from vqvae2_fast.data.words import keep_words
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.training import TrainConfig, prior_stage
from vqvae2_fast.training.stage2 import balanced, hash_of_codes, prior_config

CONFIG = TrainConfig(steps=8, batch_size=4)


def code_set(count: int = 13) -> CodeSet:
    return random_codes(8, count, sizes=((2, 2), (4, 4)))


def labelled() -> CodeSet:
    """Records of 16, 4 and 1 of three classes, and one without; each says its number."""
    labels = torch.tensor([0] * 16 + [1] * 4 + [2] + [-1])
    return CodeSet([torch.arange(22).view(22, 1, 1)], 32, labels, ("a", "b", "c"))


def test_balanced_codes_hold_rare_classes_more_often(tmp_path):
    rows = balanced(labelled().write(tmp_path), 0.5)
    assert torch.bincount(rows.labels + 1).tolist() == [1, 16, 8, 4]
    (maps,), labels = rows.batch(torch.arange(len(rows)))
    assert maps.flatten()[labels == 2].tolist() == [20] * 4


def test_training_batches_are_those_of_the_records_in_memory(tmp_path):
    saved = code_set()
    store = saved.write(tmp_path, shard_bytes=50)
    assert len(store.manifest.shards) > 2
    stage = prior_stage(PixelSNAIL(SMALL_PRIOR), store, store, CONFIG, level=1)
    seen = torch.zeros(0, dtype=torch.int64)
    for maps, labels in islice(stage.batches(3), 3):  # the second epoch
        # All records of the artificial set differ.
        rows = torch.tensor(
            [
                next(i for i in range(13) if torch.equal(saved.codes[1][i], bottom))
                for bottom in maps[1]
            ]
        )
        assert torch.equal(maps[0], saved.codes[0][rows])
        told = saved.labels[rows]
        assert torch.equal(labels, torch.where(told < 0, 3, told))  # 3 is "no class"
        seen = torch.cat([seen, rows])
    assert len(seen.unique()) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_embeddings": 16},
            "expected prior .* num_embeddings 8 .* num_embeddings 16",
        ),
        ({"size": (4, 8)}, "level sizes 2x2, 4x4 .* level sizes 2x2, 4x8"),
        ({"num_classes": 2}, "/store has 3 classes, the prior expects 2"),
    ],
    ids=["codes", "size", "classes"],
)
def test_a_store_that_the_prior_is_not_for_is_refused(tmp_path, changes, message):
    store = code_set().write(tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        prior_stage(PixelSNAIL(replace(SMALL_PRIOR, **changes)), store, store, CONFIG, level=1)


@pytest.mark.parametrize("level", [-1, 0, 2])
def test_another_level_than_the_priors_is_refused(tmp_path, level):
    store = code_set().write(tmp_path / "store")
    with pytest.raises(ValueError, match=f"expected level=1 of a prior .* got {level}"):
        prior_stage(PixelSNAIL(SMALL_PRIOR), store, store, CONFIG, level=level)


def test_an_empty_store_is_refused_by_its_argument(tmp_path):
    store = code_set().write(tmp_path / "store")
    empty = store.select(torch.zeros(0, dtype=torch.int64))
    for argument, stores in (("train_set", (empty, store)), ("held_out", (store, empty))):
        with pytest.raises(ValueError, match=f"expected {argument} to have at least one item"):
            prior_stage(PixelSNAIL(SMALL_PRIOR), *stores, CONFIG, level=1)


def test_stores_of_two_models_are_refused_by_both_hashes(tmp_path):
    ours = code_set().write(tmp_path / "ours")
    theirs = replace(code_set(), checkpoint_hash="fedcba987654321").write(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"ours has codes of VQ-VAE sha256:0f, .* fedcba987654"):
        prior_stage(PixelSNAIL(SMALL_PRIOR), ours, theirs, CONFIG, level=1)


def told_words(tmp_path, **dropout) -> Tensor:
    """The labels, `[600, 1 + 3]`, of records of class 1 with three words each."""
    codes = [torch.zeros(600, 2, 2, dtype=torch.int64)]
    store = CodeSet(codes, 8, torch.ones(600, dtype=torch.int64), ("a", "b")).write(tmp_path)
    keep_words(tmp_path, (("u", "v", "w"), torch.arange(3).expand(600, 3)))
    prior = PixelSNAIL(prior_config(SMALL_TOP, store, 0))
    stage = prior_stage(prior, store, store, replace(CONFIG, batch_size=600), level=0, **dropout)
    told = []

    def model(codes, condition, labels, *, as_loss):
        told.append(labels)
        return torch.zeros(())

    model.parameters = prior.parameters
    torch.manual_seed(0)
    stage.loss(model, next(stage.batches(0)))
    return told[0]


def test_any_number_of_words_is_left_out(tmp_path):
    told = told_words(tmp_path, label_dropout=0)
    assert (told[:, 0] == 1).all()
    assert set(told[:, 1:].unique().tolist()) == {-1, 3, 4, 5}  # after two classes and none
    counts = torch.bincount((told[:, 1:] >= 0).sum(1))  # how many records have 0, 1, 2, 3 words
    assert counts.min() > 110  # 150 each, if all numbers are equally likely


def test_a_record_without_its_class_has_no_words(tmp_path):
    told = told_words(tmp_path, label_dropout=0.5)
    bare = told[told[:, 0] == 2]
    assert len(bare) > 200
    assert (bare[:, 1:] == -1).all()


def test_a_prior_is_named_the_words_of_its_codes(tmp_path):
    store = CodeSet([torch.zeros(2, 2, 2, dtype=torch.int64)], 8, torch.zeros(2).long(), ("a",))
    codes = store.write(tmp_path)
    keep_words(tmp_path, (("u", "v"), torch.tensor([[0], [1]])))
    prior = PixelSNAIL(prior_config(SMALL_TOP, codes, 0))
    prior_stage(prior, codes, codes, CONFIG, level=0)
    assert prior.word_names == ("u", "v")


def test_codes_of_other_words_are_refused(tmp_path):
    store = CodeSet([torch.zeros(2, 2, 2, dtype=torch.int64)], 8, torch.zeros(2).long(), ("a",))
    codes = store.write(tmp_path)
    prior = PixelSNAIL(replace(SMALL_TOP, num_classes=1, num_words=2))
    with pytest.raises(ValueError, match="the prior's 2 words, got 0 words in"):
        prior_stage(prior, codes, codes, CONFIG, level=0)


def test_codes_with_other_words_are_other_data(tmp_path):
    store = CodeSet([torch.zeros(2, 2, 2, dtype=torch.int64)], 8, torch.zeros(2).long(), ("a",))
    codes = store.write(tmp_path)
    before = hash_of_codes(codes)
    keep_words(tmp_path, (("u",), torch.tensor([[0], [-1]])))
    assert hash_of_codes(codes) != before


def told_labels(tmp_path, changed: dict[str, int] | None = None, **dropout) -> Tensor:
    """What a prior with two parts of each class is told of 400 records of part 1 of class 1.

    Args:
        changed: How the images were changed, if the prior is to be told: options of `extract`.
    """
    # Codes name their records.
    codes = [torch.arange(400)[:, None, None].expand(-1, 2, 2).contiguous()]
    names = ("Coat - 0", "Bag - 0", "Coat - 1", "Bag - 1")
    store = CodeSet(codes, 400, torch.full((400,), 3), names).write(tmp_path)
    (tmp_path / "extraction.json").write_text(json.dumps(changed or {}))
    small = replace(SMALL_PRIOR, num_embeddings=400)
    prior = PixelSNAIL(prior_config(small, store, 0, parts=True, variants=bool(changed)))
    stage = prior_stage(prior, store, store, replace(CONFIG, batch_size=400), level=0, **dropout)
    told = []

    def model(codes, condition, labels, *, as_loss):
        told.append(labels[codes[:, 0, 0].argsort()])
        return torch.zeros(())

    model.parameters = prior.parameters
    torch.manual_seed(0)
    stage.loss(model, next(stage.batches(0)))
    return told[0]


def test_a_prior_is_told_the_class_of_a_changed_image_and_how_it_was_changed(tmp_path):
    told = told_labels(tmp_path, {"flip": True, "copies": 2}, label_dropout=0, subclass_dropout=0)
    # Two classes, "no class", four parts, and three labels of each kind; the class is 1.
    assert told.view(4, 100).unique(dim=1).T.tolist() == [[6, 7 + 1, 10 + 1, 10 + 1]]


def test_a_changed_image_that_shows_no_class_shows_how_it_was_changed(tmp_path):
    told = told_labels(tmp_path, {"flip": True}, label_dropout=0.5, subclass_dropout=0.3)
    assert told[:200].unique().tolist() == [1, 2, 6]
    assert told[200:].unique().tolist() == [7 + 1, 7 + 2]
    assert 75 < (told[200:] == 7 + 2).sum() < 125  # half of them


@pytest.mark.parametrize("told", ["groups", "parts", "variants"])
def test_a_prior_without_classes_is_told_nothing_of_them(tmp_path, told):
    codes = [torch.zeros(4, 2, 2, dtype=torch.int64)]
    store = CodeSet(codes, 8, torch.full((4,), -1)).write(tmp_path / "none")
    with pytest.raises(ValueError, match=f"{told}: expected codes with classes, got none"):
        prior_config(SMALL_PRIOR, store, 0, **{told: True})
    named = CodeSet(codes, 8, torch.arange(4) % 2, ("a", "b")).write(tmp_path / "named")
    with pytest.raises(ValueError, match=f"{told}: expected a class-conditional prior, got an"):
        prior_config(SMALL_PRIOR, named, 0, conditional=False, **{told: True})


def test_parts_and_variants_of_other_codes_are_not_kept(tmp_path):
    codes = [torch.zeros(4, 2, 2, dtype=torch.int64)]
    store = CodeSet(codes, 8, torch.arange(4) % 2, ("a", "b")).write(tmp_path)
    before = replace(SMALL_PRIOR, num_classes=3, num_subclasses=4, num_variants=1)
    config = prior_config(before, store, 0)
    assert (config.num_classes, config.num_subclasses, config.num_variants) == (2, 0, 0)


def test_a_prior_with_parts_needs_codes_with_parts(tmp_path):
    codes = [torch.zeros(4, 2, 2, dtype=torch.int64)]
    store = CodeSet(codes, 8, torch.arange(4) % 2, ("a", "b")).write(tmp_path)
    prior = PixelSNAIL(replace(prior_config(SMALL_PRIOR, store, 0), num_subclasses=3))
    with pytest.raises(ValueError, match="has no parts of classes, and the prior has 3"):
        prior_stage(prior, store, store, CONFIG, level=0)


@pytest.mark.parametrize("others", [("b", "a"), ("a - 0", "a - 1", "c - 0", "c - 1")])
def test_stores_of_other_classes_are_refused(tmp_path, others):
    codes = [torch.zeros(4, 2, 2, dtype=torch.int64)]
    store = CodeSet(codes, 8, torch.arange(4) % 2, ("a", "b")).write(tmp_path / "train")
    other = CodeSet(codes, 8, torch.arange(4) % 2, others).write(tmp_path / "other")
    prior = PixelSNAIL(prior_config(SMALL_PRIOR, store, 0))
    with pytest.raises(ValueError, match="the same classes in both stores, got a, b in "):
        prior_stage(prior, store, other, CONFIG, level=0)


def test_another_selection_of_records_is_other_data(tmp_path):
    store = code_set().write(tmp_path)
    first, second = (hash_of_codes(store.select(torch.tensor(rows))) for rows in ([0, 1], [1, 0]))
    assert len({hash_of_codes(store), first, second}) == 3


def test_another_number_of_variants_is_refused(tmp_path):
    codes = [torch.zeros(6, 2, 2, dtype=torch.int64)]
    store = CodeSet(codes, 8, torch.zeros(6, dtype=torch.int64), ("a", "b")).write(tmp_path)
    (tmp_path / "extraction.json").write_text('{"copies": 2}')
    prior = PixelSNAIL(replace(prior_config(SMALL_PRIOR, store, 0), num_variants=3))
    with pytest.raises(ValueError, match="codes of images changed in 3 ways, got 1"):
        prior_stage(prior, store, store, CONFIG, level=0)


def test_a_prior_of_parts_is_told_the_part(tmp_path):
    told = told_labels(tmp_path, label_dropout=0, subclass_dropout=0)
    assert (told == 2 + 1 + 1 * 2 + 1).all()


def test_some_records_show_only_their_class_and_others_none(tmp_path):
    told = told_labels(tmp_path, label_dropout=0.2, subclass_dropout=0.3)
    counts = torch.bincount(told, minlength=7)
    assert counts.nonzero().flatten().tolist() == [1, 2, 6]
    assert 90 < counts[1] < 150  # the class
    assert 55 < counts[2] < 105  # no class


@pytest.mark.parametrize(
    ("hidden", "told"), [(True, [3, 4, 5, 6, 7, 8]), (False, [0, 0, 0, 1, 1, 1])]
)
def test_a_prior_of_groups_has_their_number_of_classes(tmp_path, hidden, told):
    codes = [torch.zeros(6, 2, 2, dtype=torch.int64)]
    names = ("Coat - 0", "Coat - 1", "Coat - 2", "Bag - 0", "Bag - 1", "Bag - 2")
    store = CodeSet(codes, 8, torch.arange(6), names).write(tmp_path)
    config = prior_config(SMALL_PRIOR, store, 0, groups=not hidden, parts=hidden)
    check_matches(store, config)
    assert (config.num_classes, config.num_subclasses) == (2, 3 if hidden else 0)
    assert labels_of_prior(names, 2, config.num_subclasses).tolist() == [*told, 2]
