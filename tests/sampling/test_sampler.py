"""`sample_codes`: noise by sample number, modes, progress, and errors that name bad arguments."""

import threading

import pytest
import torch
from helpers.models import prior_inputs, tiny_prior

from vqvae2_fast import ops
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import interface_of, plan_of, sample_codes
from vqvae2_fast.sampling.request import DrawNoise
from vqvae2_fast.sampling.sampler import draw
from vqvae2_fast.sampling.settings import DrawSettings

ENGINES = ["reference", "eager"] + ([] if _native.module is None else ["cpu"])


def noise_of(batch_size, **arguments):
    noise = DrawNoise(batch_size, 6, 13, torch.device("cpu"), **arguments)
    return torch.stack([noise.row(i) for i in range(4)], dim=1)  # [B, H, W, K]


def test_noise_of_a_sample_is_the_same_in_every_batch():
    three = noise_of(3, seed=7, first_sample=5)
    for n in range(3):
        assert torch.equal(noise_of(1, seed=7, first_sample=5 + n)[0], three[n])


def test_noise_position_is_row_times_width_plus_column():
    samples, position = torch.tensor([2]), torch.tensor([3 * 6 + 4])
    expected = ops.gumbel_noise(samples, position, 13, seed=9, stream=1)[0, 0]
    assert torch.equal(noise_of(1, seed=9, first_sample=2, stream=1)[0, 3, 4], expected)


@pytest.mark.parametrize("argument", ["seed", "first_sample", "stream"])
def test_draw_depends_on(argument):
    prior = tiny_prior()
    assert not torch.equal(sample_codes(prior, 1), sample_codes(prior, 1, **{argument: 1}))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sample_is_the_same_map_in_every_batch(engine):
    # These engines promise this up to near ties, of which this seed has none.
    prior = tiny_prior()
    together = sample_codes(prior, 3, seed=2, first_sample=4, engine=engine)
    for n in range(3):
        alone = sample_codes(prior, 1, seed=2, first_sample=4 + n, engine=engine)
        assert torch.equal(alone[0], together[n])


@pytest.mark.parametrize("engine", ENGINES)
def test_given_noise_equals_that_of_the_seed(engine):
    prior = tiny_prior()
    noise = noise_of(2, seed=3, first_sample=1, stream=2)
    codes = sample_codes(prior, 2, seed=3, first_sample=1, stream=2, engine=engine)
    assert torch.equal(sample_codes(prior, 2, noise=noise, engine=engine), codes)


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_is_off_and_the_mode_is_kept(engine):
    prior = tiny_prior(dropout=0.9)
    expected = sample_codes(prior, 2, engine=engine)
    prior.train()
    prior.stem.eval()
    assert torch.equal(sample_codes(prior, 2, engine=engine), expected)
    assert prior.training
    assert prior.head.training
    assert not prior.stem.training


@pytest.mark.parametrize("engine", ENGINES)
def test_progress_is_called_after_each_row(engine):
    calls = []
    sample_codes(tiny_prior(), 1, engine=engine, progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("engine", ENGINES)
def test_codes_can_be_trained_on(engine):
    prior = tiny_prior()
    prior.loss(sample_codes(prior, 2, engine=engine)).backward()
    assert prior.head.bias.grad is not None


def test_drawing_leaves_torchs_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    sample_codes(tiny_prior(), 1)
    assert torch.equal(torch.rand(1), expected)


def test_plan_is_folded_once_while_the_weights_stay():
    prior = tiny_prior()
    plan = plan_of(prior, interface_of(prior))
    assert plan_of(prior, interface_of(prior)) is plan
    with torch.no_grad():
        prior.head.bias.add_(1.0)
    assert plan_of(prior, interface_of(prior)) is not plan


MAP = torch.zeros(2, 4, 6, dtype=torch.int64)
BAD_ARGUMENTS = {
    "batch": ({"batch_size": 0}, ValueError, "batch_size to be an integer from 1 to .*, got 0"),
    "noise with NaN": (
        {"noise": torch.full((2, 4, 6, 13), float("nan"))},
        ValueError,
        "finite noise, got infinite or NaN",
    ),
    "first sample": (
        {"first_sample": -1},
        ValueError,
        "first_sample to be .* 0 to 4294967294, got -1",
    ),
    "stream": ({"stream": -1}, ValueError, "stream to be an integer from 0 to 65535, got -1"),
    "seed": (
        {"seed": 2**64},
        ValueError,
        "seed to be .*, got 18446744073709551616",
    ),
    "engine": ({"engine": "gpu"}, ValueError, "auto, .*eager, reference.*, got 'gpu'"),
    "labels without classes": ({"labels": MAP[:, 0, 0]}, ValueError, "expected no labels"),
    "condition not wanted": ({"condition": MAP}, ValueError, "condition to be 0 map"),
    "noise shape": (
        {"noise": torch.zeros(2, 4, 6, 12)},
        ValueError,
        r"noise \[2, 4, 6, 13\] \(B, H, W, K\), got \[2, 4, 6, 12\]",
    ),
    "known shape": ({"known": MAP[:1]}, ValueError, r"known \[2, 4, 6\], got \[1, 4, 6\]"),
    "known dtype": ({"known": MAP.float()}, TypeError, "known int64"),
    "known range": ({"known": MAP + 13}, ValueError, r"known in -1\.\.12"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_argument_is_named(name, engine):
    arguments, error, message = BAD_ARGUMENTS[name]
    with pytest.raises(error, match=message):
        sample_codes(tiny_prior(), **{"batch_size": 2, "engine": engine, **arguments})


EDGES = {
    "least temperature": {"temperature": 1e-15, "top_p": 0.5},
    "greatest temperature": {"temperature": 1e15, "top_p": 0.5},
    "least top_p": {"top_p": 1e-15},
    "top_p of almost 1": {"top_p": 1 - 1e-9},
    "top_p one step below 1": {"top_p": 1 - 2.0**-24},
    "greatest top_k": {"top_k": 2**63 - 1},
    "greatest guidance": {"guidance_scale": 1e15, "temperature": 1e-15, "top_p": 0.5},
    "least guidance": {"guidance_scale": -1e15},
}


@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("edge", EDGES)
def test_engines_agree_where_numbers_are_extreme(edge, engine):
    prior, labels = tiny_prior(num_classes=3), torch.tensor([0, 1, 2])

    def draw(engine):
        return sample_codes(prior, 3, labels=labels, seed=2, engine=engine, **EDGES[edge])

    assert torch.equal(draw(engine), draw("reference"))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_callback_changes_is_not_read(engine):
    prior = tiny_prior(num_classes=3, condition_sizes=((2, 3),))
    settings = DrawSettings(engine=engine)

    def drawn(change=None):
        inputs = prior_inputs(prior, 2)
        known = torch.full_like(inputs["codes"], -1)
        given = (known, inputs["labels"], *inputs["condition"])

        def progress(*_):
            for codes in given if change else ():
                codes.fill_(2)

        def on_row(_, codes):
            if change:
                codes.fill_(2)

        context = {"labels": given[1], "condition": given[2:]}
        return draw(
            prior, 2, settings, known=known, progress=progress, on_row=on_row, **context
        ).codes

    assert torch.equal(drawn(change=True), drawn())


def test_a_prior_in_training_mode_is_drawn_from_in_two_threads_without_dropout():
    prior = tiny_prior(dropout=0.5, size=(3, 4)).train()
    arguments = {"engine": "reference", "return_log_prob": True}
    expected = sample_codes(prior, 2, **arguments)[1]
    inside, ended, drawn = threading.Event(), threading.Event(), []

    def wait_for_the_first(*_):
        inside.set()
        assert ended.wait(30)

    def draw(progress):
        drawn.append(sample_codes(prior, 2, **arguments, progress=progress)[1])

    second = threading.Thread(target=draw, args=[wait_for_the_first])

    def start_the_second(row, _):
        if row == 1:
            second.start()
            assert inside.wait(30)

    draw(start_the_second)
    ended.set()
    second.join()
    assert len(drawn) == 2 and all(torch.equal(own, expected) for own in drawn)
    assert all(module.training for module in prior.modules())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels are missing"),
        (torch.tensor([0, 4]), r"labels in 0\.\.3, got values in 0\.\.4"),
        (torch.tensor([0]), r"labels \[2\], got \[1\]"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(ValueError, match=f".*{message}"):
        sample_codes(tiny_prior(num_classes=3), 2, labels=labels)


def test_missing_condition_is_named():
    prior = tiny_prior(condition_sizes=((2, 3),))
    with pytest.raises(ValueError, match=r"expected condition to be 1 map"):
        sample_codes(prior, 2)
    condition = prior_inputs(prior, 3)["condition"]
    with pytest.raises(ValueError, match=r"condition\[0\] \[2, 2, 3\], got \[3, 2, 3\]"):
        sample_codes(prior, 2, condition=condition)
