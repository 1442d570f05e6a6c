"""What the commands that train say of the best step, if it is not the last."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vqvae2_fast.commands import train_prior

PRIOR = "--model.channels 8 --model.residual-channels 8 --model.num-heads 2 --train.batch-size 4"


@pytest.fixture
def prior_whose_validations_give(monkeypatch, codes, tmp_path, run):
    """Runs `train-prior` with these bits per image at its steps; returns what it prints."""

    def call(*bits: float, options: str = "") -> str:
        given, make = iter(bits), train_prior.prior_stage

        def stage(*args, **kwargs):
            found = make(*args, **kwargs)

            def validate(prior):
                return found.validate(prior) | {"bits_per_image": next(given)}

            return replace(found, validate=validate)

        monkeypatch.setattr(train_prior, "prior_stage", stage)
        line = f"train-prior --codes {codes} {PRIOR} --train.validate-every 1 --quiet {options}"
        code, text, _ = run(line, "--train.steps", len(bits), "--out", tmp_path / "run")
        assert code == 0
        return text

    return call


def test_a_best_step_before_the_last_is_named_with_its_checkpoint(
    prior_whose_validations_give, tmp_path
):
    text = prior_whose_validations_give(90, 67, 85)
    assert "held out: 85 bits per image" in text
    assert "best at step 2: 67 bits per image" in text
    assert f"Name {tmp_path / 'run' / 'best'} to use that one" in text


def test_a_last_step_about_as_good_as_the_best_is_not_questioned(prior_whose_validations_give):
    assert "best at step" not in prior_whose_validations_give(90, 85, 85.5)


def test_the_best_step_is_a_value_for_machines(prior_whose_validations_give):
    values = json.loads(prior_whose_validations_give(67, 85, options="--json"))
    assert values["best"] == {"step": 1, "metric": "bits_per_image", "value": 67}
