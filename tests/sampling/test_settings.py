"""Drawing a code from logits: temperature, filters, ties."""

import numpy as np
import pytest
import torch

from vqvae2_fast.ops.draw_codes.op import guided
from vqvae2_fast.sampling.settings import DrawSettings, level_settings

LOGITS = torch.tensor([[1.0, 3.0, 2.0, 3.0, 0.0]])


def kept_codes(rule, logits=LOGITS):
    return torch.isfinite(rule.kept(logits))[0].nonzero()[:, 0].tolist()


def test_top_k_keeps_the_lower_index_of_equal_logits():
    assert kept_codes(DrawSettings(top_k=1)) == [1]
    assert kept_codes(DrawSettings(top_k=2)) == [1, 3]
    assert kept_codes(DrawSettings(top_k=3)) == [1, 2, 3]


def test_top_k_among_many_equal_logits_takes_the_lowest_indices():
    logits = torch.zeros(1, 200)
    logits[0, ::7] = 1.0
    assert kept_codes(DrawSettings(top_k=4), logits) == [0, 7, 14, 21]


def test_top_p_keeps_the_shortest_prefix_that_reaches_p():
    logits = torch.tensor([[0.1, 0.5, 0.25, 0.15]]).log()
    assert kept_codes(DrawSettings(top_p=0.5), logits) == [1]
    assert kept_codes(DrawSettings(top_p=0.51), logits) == [1, 2]
    assert kept_codes(DrawSettings(top_p=0.76), logits) == [1, 2, 3]
    assert kept_codes(DrawSettings(top_p=0.95), logits) == [0, 1, 2, 3]


def test_top_p_keeps_one_code_at_least():
    assert kept_codes(DrawSettings(top_p=1e-6)) == [1]


def test_top_p_acts_on_what_top_k_left():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Of the two best, the first has 4/7 of the probability, enough for 0.5; of all codes it has
    # 0.4.
    assert kept_codes(DrawSettings(top_p=0.5), logits) == [0, 1]
    assert kept_codes(DrawSettings(top_k=2, top_p=0.5), logits) == [0]


def test_argmax_takes_the_lowest_index_on_ties():
    assert DrawSettings().draw(LOGITS, torch.zeros(1, 5)).tolist() == [1]


def test_noise_decides_between_kept_codes_only():
    noise = torch.tensor([[9.0, 0.0, 9.0, 1.0, 9.0]])
    assert DrawSettings(top_k=2).draw(LOGITS, noise).tolist() == [3]


def test_temperature_divides_the_logits_before_the_noise():
    noise = torch.tensor([[0.0, 0.0, 0.8, 0.0, 0.0]])
    assert DrawSettings(temperature=1.0).draw(LOGITS, noise).tolist() == [1]
    assert DrawSettings(temperature=2.0).draw(LOGITS, noise).tolist() == [2]


def test_temperature_acts_before_top_p():
    logits = torch.tensor([[0.6, 0.25, 0.15]]).log()
    assert kept_codes(DrawSettings(top_p=0.6), logits) == [0]
    hot = DrawSettings(temperature=4.0, top_p=0.6)
    assert torch.isfinite(hot.kept(hot.tempered(logits)))[0].tolist() == [True, True, False]


def test_temperature_zero_is_the_best_code_whatever_the_noise():
    noise = torch.tensor([[99.0, 0.0, 0.0, 0.0, 0.0]])
    assert DrawSettings(temperature=0.0, top_k=3).draw(LOGITS, noise).tolist() == [1]


def test_guidance_is_linear_between_without_and_with():
    conditional, unconditional = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]])
    assert guided(conditional, unconditional, 0.0).tolist() == [[1, 3]]
    assert guided(conditional, unconditional, 3.0).tolist() == [[4, -3]]


def test_draws_follow_the_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(200_000, 3)
    noise = -torch.log(-torch.log(torch.rand(200_000, 3)))
    share = DrawSettings().draw(logits, noise).bincount(minlength=3) / 200_000
    # Four standard deviations of a share of 200,000 draws are at most 0.0045.
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.0045, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.5}, "temperature to be 0, .* or from 1e-15 to 1e.15, got -0.5"),
        ({"temperature": float("nan")}, "temperature to be 0, .*, got nan"),
        ({"top_k": 0}, "top_k to be an integer >= 1, or None for no limit, got 0"),
        ({"top_k": 1.5}, "top_k to be an integer from 1 to 9223372036854775807, got 1.5"),
        ({"top_p": 0.0}, "top_p to be None or from 1e-15 to 1, got 0.0"),
        ({"top_p": 1.5}, "top_p to be None or from 1e-15 to 1, got 1.5"),
        ({"guidance_scale": float("inf")}, "guidance_scale to be from .*, got inf"),
        ({"seed": 1.5}, "seed to be an integer from .*, got 1.5"),
    ],
)
def test_values_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DrawSettings(**arguments)


def test_numbers_of_other_libraries_become_plain_ones():
    settings = DrawSettings(np.float32(0.5), np.int64(3), np.float64(0.25), seed=np.int32(7))
    assert settings == DrawSettings(0.5, 3, 0.25, seed=7)
    assert all(type(value) in (int, float, str) for value in vars(settings).values())


def test_a_top_p_that_is_1_in_float32_leaves_nothing_out():
    assert DrawSettings(top_p=1 - 1e-9) == DrawSettings(top_p=1.0) == DrawSettings()
    assert DrawSettings(top_p=1 - 1e-7).top_p is not None


def test_settings_are_given_once_or_per_level():
    levels = level_settings(2, temperature=[0.9, 0.7], top_k=5, seed=3)
    assert levels == (DrawSettings(0.9, 5, seed=3), DrawSettings(0.7, 5, seed=3))


def test_a_list_of_another_length_and_an_unknown_setting_are_named():
    with pytest.raises(ValueError, match="temperature to be one value or 2, .* got 3"):
        level_settings(2, temperature=[1.0, 1.0, 1.0])
    with pytest.raises(TypeError, match="'temprature' is no setting; expected one of temperature"):
        level_settings(2, temprature=1.0)
