"""Learning rate, seeds of steps, and the Polyak average."""

from __future__ import annotations

import pytest
import torch
from helpers.models import tiny_prior

from vqvae2_fast.training.config import TrainConfig, learning_rate, step_seed
from vqvae2_fast.training.optimizer import PolyakAverage, make_optimizer


def test_learning_rate_warms_up_and_falls_to_its_final_share():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=2.0, final_learning_rate=0.1)
    rates = [learning_rate(step, config) for step in range(111)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert rates[110] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_schedule_of_steps_falls_to_a_tenth_after_30_60_and_80_ninetieths():
    config = TrainConfig(steps=180, warmup_steps=10, learning_rate=2.0, schedule="steps")
    rates = [learning_rate(step, config) for step in range(180)]
    assert [step for step in range(1, 180) if rates[step] < rates[step - 1]] == [60, 120, 160]
    assert [rates[step] for step in (9, 60, 120, 160)] == pytest.approx([2.0, 0.2, 0.02, 0.002])


def test_seeds_of_steps_and_runs_differ():
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(1000)}
    assert len(seeds) == 20_000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_only_matrices_decay(optimizer):
    prior = tiny_prior()
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1)
    decays = {
        weight: group["weight_decay"]
        for group in make_optimizer(prior, config).param_groups
        for weight in group["params"]
    }
    for name, weight in prior.named_parameters():
        vector = name.endswith(("bias", "weight_g"))
        assert decays[weight] == (0.0 if vector else 0.1), name


def test_average_follows_its_formula_and_its_early_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        average = PolyakAverage(model, 0.5)
        model.weight.fill_(1.0)
        average.update(model, 0)  # decay min(0.5, 1/10)
        assert float(average.weights["weight"]) == pytest.approx(0.9)
        model.weight.fill_(2.0)
        average.update(model, 90)  # decay 0.5: 91/100 is above it
        assert float(average.weights["weight"]) == pytest.approx(0.5 * 0.9 + 0.5 * 2.0)


def test_average_is_applied_inside_its_block_only():
    model = torch.nn.Linear(1, 1, bias=False)
    average = PolyakAverage(model, 0.9)
    average.weights["weight"].fill_(5.0)
    with torch.no_grad():
        model.weight.fill_(1.0)
    with average.applied(model):
        assert model.weight.item() == 5.0
    assert model.weight.item() == 1.0
    assert float(average.weights["weight"]) == 5.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", -1),
        ("learning_rate", 0.0),
        ("average_decay", 1.0),
        ("final_learning_rate", 1.5),
        ("max_grad_norm", float("nan")),
        ("weight_decay", float("nan")),
        ("seed", 2**64),
        ("warmup_steps", True),
        ("optimizer", "sgd"),
        ("schedule", "constant"),
        ("precision", "bf16"),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"expected {name} to be .* got '?{value}"):
        TrainConfig(**{name: value})
