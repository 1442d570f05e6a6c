"""Parts of classes: from images to a prior that hides them."""

from vqvae2_fast import PixelSNAIL, load
from vqvae2_fast.data import CodeStore

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


def test_classes_without_parts_are_refused(codes, tmp_path, run):
    line = f"train-prior --codes {codes} {PRIOR} --parts --out {tmp_path / 'prior'}"
    code, _, error = run(line)
    assert code == 2
    assert "expected groups of as many classes each, two or more, got cat: 1, dog: 1" in error
