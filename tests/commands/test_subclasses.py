"""Parts of classes and variants of images: from images to a prior that is told of them."""

import pytest
import torch
from helpers.models import tiny_pipeline
from PIL import Image

from vqvae2_fast import PixelSNAIL, load
from vqvae2_fast.checkpoints import save
from vqvae2_fast.commands import calibrate
from vqvae2_fast.data import CodeStore, CodeWriter

PRIOR = "--model.channels 8 --model.residual-channels 8 --model.num-heads 2 --train.batch-size 4"


def test_a_prior_of_parts_knows_the_classes_and_hides_them(images, vqvae, tmp_path, run):
    codes, out = tmp_path / "codes", tmp_path / "prior"
    parts = ["--data", images, "--subclasses", 2, "--quiet", "--out", codes]
    assert run("extract", "--vqvae", vqvae, *parts)[0] == 0
    assert len(CodeStore(codes / "train").class_names) == 4
    line = f"train-prior --codes {codes} {PRIOR} --parts --train.steps 1 --quiet --out {out}"
    assert run(line)[0] == 0
    prior = load(out, expect=PixelSNAIL)
    assert prior.class_names == ("cat", "dog")
    assert (prior.config.num_classes, prior.config.num_subclasses) == (2, 2)


def test_a_prior_is_told_of_mirrored_images_by_labels_of_their_own(images, vqvae, tmp_path, run):
    codes, out = tmp_path / "codes", tmp_path / "prior"
    parts = ["--data", images, "--subclasses", 2, "--flip", "--quiet", "--out", codes]
    assert run("extract", "--vqvae", vqvae, *parts)[0] == 0
    line = f"train-prior --codes {codes} {PRIOR} --parts --tell-variants --train.steps 1 --quiet"
    assert run(line, "--out", out)[0] == 0
    prior = load(out, expect=PixelSNAIL)
    assert prior.class_names == ("cat", "dog")
    assert prior.config.num_variants == 1
    assert prior.config.num_labels == 3 + 4 + 3


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--unconditional --label-dropout 0.5", "--label-dropout: expected a prior that is told"),
        ("--class-balance 1", "--class-balance: expected codes with classes, got 1.0"),
    ],
)
def test_settings_of_classes_need_some(vqvae, tmp_path, run, option, named):
    for number in range(6):
        path = tmp_path / "flat" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(path)
    codes = tmp_path / "codes"
    given = ["--vqvae", vqvae, "--data", path.parent, "--out", codes, "--quiet"]
    assert run("extract", *given)[0] == 0
    line = f"train-prior --codes {codes} {PRIOR} --out {tmp_path / 'prior'} {option}"
    code, _, error = run(line)
    assert code == 2
    assert named in error


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--parts", "expected every class to have the same number of parts"),
        ("--tell-variants", "has none of changed ones"),
    ],
)
def test_codes_without_parts_or_variants_are_refused(codes, tmp_path, run, option, named):
    line = f"train-prior --codes {codes} {PRIOR} {option} --out {tmp_path / 'prior'}"
    code, _, error = run(line)
    assert code == 2
    assert named in error


def test_calibration_tells_a_prior_the_parts_of_its_codes(tmp_path, run, monkeypatch):
    save(tiny_pipeline(2, num_subclasses=2), tmp_path / "pipeline", class_names=("Coat", "Bag"))
    names = ("Coat - 0", "Coat - 1", "Bag - 0", "Bag - 1")
    codes = [torch.zeros(5, side, side, dtype=torch.int64) for side in (4, 8)]
    with CodeWriter(tmp_path / "codes", 13, [(4, 4), (8, 8)], class_names=names) as writer:
        writer.add(codes, torch.tensor([0, 1, 2, 3, -1]))
    told = []

    def noted(prior, batches, *, margin):
        told.append(torch.cat([labels for _, _, labels in batches]).tolist())

    monkeypatch.setattr(calibrate, "calibrate", noted)
    line = f"calibrate --pipeline {tmp_path / 'pipeline'} --codes {tmp_path / 'codes'}"
    assert run(line, "--out", tmp_path / "calibrated")[0] == 0
    assert told == [[3, 4, 5, 6, 2]] * 2
