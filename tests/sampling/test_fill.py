"""`fill`: holes in code maps, filled by what comes before them or weighed by what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.models import prior_inputs, tiny_pipeline, tiny_prior

from vqvae2_fast.sampling import candidates as candidates_module
from vqvae2_fast.sampling import (
    fill,
    level_settings,
    sample_codes,
    sample_levels,
    score_codes,
)
from vqvae2_fast.sampling.batches import draw_batch
from vqvae2_fast.sampling.candidates import draw_candidates, take_candidates
from vqvae2_fast.sampling.settings import DrawSettings

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
MASK = torch.zeros(16, 16, dtype=torch.bool)
MASK[4:12, 4:12] = True
LABELS = torch.tensor([0, 1, 3])


def filled(prior, known, candidates, **settings):
    return draw_candidates(
        prior,
        len(known),
        DrawSettings(**settings),
        candidates,
        condition=[],
        labels=None,
        known=known,
        first_sample=0,
        stream=0,
    )


def test_many_candidates_draw_from_the_posterior():
    prior = tiny_prior(1, size=(1, 3), num_embeddings=5)
    with torch.no_grad():
        prior.head.kernel.weight_g.mul_(8)  # so that codes depend on one another
    # All five fillings of the middle, and the probability of each.
    middle = torch.arange(5)
    whole = torch.tensor([[0, 0, 2]]).repeat(5, 1)
    whole[:, 1] = middle
    log_prob = score_codes(prior, whole[:, None])[:, 0].double()  # [5, 3]
    past, posterior = log_prob[:, 1].exp(), log_prob[:, 1:].sum(1).softmax(0)
    known = torch.tensor([[[0, -1, 2]]]).repeat(400, 1, 1)

    def distance(candidates, expected):
        codes = filled(prior, known, candidates).codes[:, 0, 1]
        return float((torch.bincount(codes, minlength=5) / 400 - expected).abs().sum() / 2)

    # 400 draws of five values lie about 0.04 from their distribution.
    assert (past - posterior).abs().sum() / 2 > 0.5
    assert distance(1, past) < 0.08
    assert distance(32, posterior) < 0.08


def test_a_filling_is_taken_by_its_weight():
    prior = tiny_prior()
    known = prior_inputs(prior, 2)["codes"]
    known[:, 1:3, 2:4] = -1
    drawn = filled(prior, known, 8, seed=5)
    of_sample = [known[b : b + 1].expand(8, -1, -1) for b in range(2)]
    later = known >= 0
    later[:, 0] = False
    later[:, 1, :2] = False
    for b in range(2):
        codes, log_prob = sample_codes(
            prior, 8, known=of_sample[b], seed=5, first_sample=8 * b, return_log_prob=True
        )
        weights = log_prob[:, later[b]].double().sum(1).exp()
        taken = (codes == drawn.codes[b]).flatten(1).all(1).nonzero().flatten()
        assert len(taken) == 1
        assert torch.equal(log_prob[taken[0]], drawn.log_prob[b])
        effective = weights.sum() ** 2 / weights.square().sum()
        torch.testing.assert_close(drawn.effective[b], effective)


def test_one_candidate_draws_on_from_what_comes_before():
    pipeline = tiny_pipeline()
    images, effective = fill(pipeline, IMAGES, MASK, labels=LABELS, seed=2, first_sample=7)
    known = [maps.clone() for maps in pipeline.vqvae.encode(IMAGES)]
    known[0][:, 1:3, 1:3] = -1
    known[1][:, 2:6, 2:6] = -1
    expected = draw_batch(
        pipeline, range(7, 10), level_settings(2, seed=2), labels=LABELS, known=known
    )
    assert torch.equal(images, expected.images)
    assert effective.tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("codes_at_a_time", [1, 100, 40_960])
def test_an_image_is_filled_the_same_in_any_batch(monkeypatch, codes_at_a_time):
    pipeline = tiny_pipeline()
    monkeypatch.setattr(candidates_module, "BATCH_CODES", codes_at_a_time)
    whole = fill(pipeline, IMAGES, MASK, labels=LABELS, candidates=4)
    alone = fill(pipeline, IMAGES[1:2], MASK, labels=LABELS[1:2], candidates=4, first_sample=1)
    assert torch.equal(whole[0][1:2], alone[0])
    assert torch.equal(whole[1][1:2], alone[1])


def test_seed_and_candidates_change_the_filling():
    pipeline = tiny_pipeline()
    first, other, more = (
        fill(pipeline, IMAGES, MASK, labels=LABELS, **arguments)[0]
        for arguments in ({"seed": 1}, {"seed": 2}, {"seed": 1, "candidates": 5})
    )
    assert not torch.equal(first, other)
    assert not torch.equal(first, more)


def test_known_codes_are_kept_at_every_level():
    pipeline = tiny_pipeline()
    maps = sample_levels(pipeline, 2, labels=LABELS[:2], seed=9)
    known = [level.clone() for level in maps]
    known[0][0, 2, 1] = -1
    known[1][1, 5:, 3:] = -1
    drawn = draw_batch(
        pipeline,
        range(2),
        level_settings(2, seed=4),
        labels=LABELS[:2],
        known=known,
        candidates=6,
    )
    for before, after in zip(known, drawn.codes, strict=True):
        assert torch.equal(after[before >= 0], before[before >= 0])
    assert not torch.equal(drawn.codes[1], maps[1])
    # Nothing to weigh: one image without a hole at a level, one whose last code is drawn.
    assert drawn.effective[1][0] == pytest.approx(6)
    assert drawn.effective[0][1] == pytest.approx(6)
    assert 1 <= drawn.effective[0][0] < 6


def test_masks_of_codes_choose_the_level():
    pipeline = tiny_pipeline(0)
    top, bottom = torch.zeros(4, 4, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)
    images, effective = fill(pipeline, IMAGES, [top, bottom], candidates=3)
    known = [pipeline.vqvae.encode(IMAGES)[0], torch.full((3, 8, 8), -1)]
    expected = draw_batch(
        pipeline, range(3), level_settings(2), labels=None, known=known, candidates=3
    )
    assert torch.equal(images, expected.images)
    torch.testing.assert_close(effective, torch.full((3, 2), 3.0, dtype=torch.float64))


def test_a_pixel_frees_the_codes_of_its_cell():
    pipeline = tiny_pipeline(0)
    mask = torch.zeros(3, 16, 16, dtype=torch.bool)
    mask[0, 9, 6] = True
    masks = [torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 8, 8, dtype=torch.bool)]
    masks[0][0, 2, 1] = masks[1][0, 4, 3] = True
    by_pixels, by_codes = (fill(pipeline, IMAGES, m, temperature=3.0)[0] for m in (mask, masks))
    assert torch.equal(by_pixels, by_codes)


def test_progress_counts_the_rows_of_all_batches(monkeypatch):
    monkeypatch.setattr(candidates_module, "BATCH_CODES", 64)
    calls = []
    fill(
        tiny_pipeline(0),
        IMAGES[:1],
        MASK,
        candidates=2,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(0, row, 4) for row in (1, 2, 3, 4)] + [(1, row, 16) for row in range(1, 17)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"candidates": 0}, ValueError, "candidates to be an integer from 1 .*, got 0"),
        ({"first_sample": -1}, ValueError, "first_sample to be an integer from 0"),
        ({"mask": MASK.float()}, TypeError, "mask bool, True where to draw, got float32"),
        ({"mask": MASK[:8]}, ValueError, r"mask \[3, 16, 16\] or \[16, 16\], got \[8, 16\]"),
        ({"mask": [MASK, MASK]}, ValueError, r"mask\[0\] \[3, 4, 4\] or \[4, 4\], got"),
        (
            {"images": IMAGES[:, :1]},
            ValueError,
            r"images .* \[B, 3, 16, 16\] .* got \[3, 1, 16, 16\]",
        ),
        ({"images": IMAGES.byte()}, TypeError, "images of a floating dtype, got uint8"),
        ({"images": IMAGES * 100}, ValueError, r"images in \[-1, 1\], got values from -99.* to 99"),
        ({"labels": LABELS[:2]}, ValueError, r"labels \[3\], got \[2\]"),
    ],
)
def test_bad_argument_is_named(arguments, error, message):
    given = {"images": IMAGES, "mask": MASK, "labels": LABELS, **arguments}
    with pytest.raises(error, match=f"^expected {message}"):
        fill(tiny_pipeline(), **given)


def test_images_a_little_beyond_their_range_are_filled():
    # As scaling and decoders make them.
    filled, _ = fill(tiny_pipeline(), IMAGES * 1.5, MASK, labels=LABELS)
    assert filled.abs().max() <= 1


def test_labels_are_taken_by_name():
    pipeline = replace(tiny_pipeline(), class_names=("cat", "cow", "dog"))
    by_name = fill(pipeline, IMAGES, MASK, labels=["cat", "cow", None])[0]
    assert torch.equal(by_name, fill(pipeline, IMAGES, MASK, labels=LABELS)[0])


def test_a_candidate_counts_the_known_codes_that_follow_a_drawn_one():
    known = torch.tensor([[[5, -1, 0, 3]]])  # 5 does not depend on what is drawn, 0 and 3 do
    log_prob = torch.zeros(1, 3, 1, 4)
    log_prob[0, :, 0, 0] = torch.tensor([-900.0, 0.0, 0.0])
    log_prob[0, :, 0, 1] = torch.tensor([-900.0, 0.0, 0.0])
    log_prob[0, :, 0, 2] = torch.tensor([0.0, -900.0, -900.0])
    taken, effective = take_candidates(log_prob, known, 0, 0, 0)
    assert taken.item() == 0
    assert effective.item() == 1
