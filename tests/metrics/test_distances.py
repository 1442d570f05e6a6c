"""Distances of sets: against other implementations on the same features, and on known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vqvae2_fast.metrics import set_measures
from vqvae2_fast.metrics.accuracy import _wilson
from vqvae2_fast.metrics.estimates import GROUPS, T_975, Estimate, jackknife
from vqvae2_fast.metrics.set_measures import (
    Moments,
    frechet_distance,
    gaussian_distance,
    inception_score,
    kernel_distance,
    neighbour_measures,
    squared_discrepancy,
)


def features(n: int, dim: int = 16, *, seed: int, shift: float = 0.0, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    return scale * torch.randn(n, dim, generator=generator) @ mixing + shift


def moments(rows: torch.Tensor, batch: int = 37) -> Moments:
    return Moments.of(rows.split(batch))


# Fréchet


def test_frechet_is_that_of_scipys_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    real, fake = features(500, seed=1), features(431, seed=2, shift=0.2, scale=1.3)
    a, b = np.cov(real.double().numpy(), rowvar=False), np.cov(fake.double().numpy(), rowvar=False)
    means = real.double().mean(0) - fake.double().mean(0)
    expected = float(means @ means) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    found = frechet_distance(moments(real), moments(fake), interval=False)
    assert found.value == pytest.approx(expected, rel=1e-9)


def test_frechet_of_gaussians_with_known_answer():
    mean, covariance = torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0])).double()
    other = torch.tensor([1.0, 2.0, 2.0]).double(), 4 * covariance
    # ‖(1, 2, 2)‖² + Σ (σ − 2σ)²
    assert gaussian_distance((mean, covariance), other) == pytest.approx(9 + 1 + 4 + 9)


def test_frechet_of_a_singular_covariance_is_finite_and_zero_to_itself():
    gaussian = (torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 0.0])).double())
    assert gaussian_distance(gaussian, gaussian) == pytest.approx(0, abs=1e-12)


def test_moments_do_not_depend_on_the_batches():
    rows = features(300, seed=3, shift=1000.0)  # a mean that would swallow the spread in float32
    for batch in (1, 64, 300):
        mean, covariance = moments(rows, batch).mean_and_covariance()
        assert torch.allclose(mean, rows.double().mean(0), rtol=1e-12)
        assert torch.allclose(covariance, rows.double().T.cov(), rtol=1e-6, atol=1e-9)


def test_an_empty_batch_changes_no_moments():
    features = torch.randn(30, 4)
    found = Moments.of([features[:0], features, features[:0]])
    expected = Moments.of([features])
    for one, other in zip(found.mean_and_covariance(), expected.mean_and_covariance(), strict=True):
        assert torch.equal(one, other)


def test_moments_without_a_group_are_those_of_the_other_images():
    rows = features(205, seed=4)
    kept = rows[torch.arange(205) % 10 != 3]
    _, covariance = moments(rows).mean_and_covariance(without=3)
    assert torch.allclose(covariance, kept.double().T.cov(), rtol=1e-9)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        Moments.of([torch.full((4, 3), math.nan)])
    real, fake = features(120, seed=1), features(120, seed=2)
    fake[7, 3] = math.nan
    for sets, name in (((real, fake), "fake"), ((fake, real), "real")):
        with pytest.raises(ValueError, match=f"expected finite .* in {name}"):
            neighbour_measures(*sets)


ROWS, OTHERS, FEW = features(200, 4, seed=1), features(200, 4, seed=2), features(99, 4, seed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(moments(FEW), moments(FEW)), "100 images of each set, got 99"),
        (lambda: kernel_distance(ROWS[:199], ROWS), "at least 200 images"),
        (lambda: neighbour_measures(ROWS, FEW), "at least 100 images"),
        (lambda: inception_score([FEW.log_softmax(1)]), "at least 100 images"),
        (lambda: Moments.of(ROWS), r"got one of \[4\]"),
        (lambda: inception_score(ROWS.log_softmax(1)), r"got one of \[4\]"),
        (lambda: frechet_distance(moments(ROWS), OTHERS), "got a Tensor"),
        (lambda: squared_discrepancy(ROWS, OTHERS[:, 1:]), r"features \[N, D\] and \[M, D\]"),
        (lambda: kernel_distance(ROWS, OTHERS * math.inf), "finite features"),
        (lambda: neighbour_measures(ROWS, OTHERS[:, 1:]), r"\[200, 4\] and \[200, 3\]"),
    ],
)
def test_features_that_do_not_fit_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


# Kernel distance


def test_kernel_distance_is_that_of_torchmetrics():
    other = pytest.importorskip("torchmetrics.image.kid")
    real, fake = features(400, seed=1), features(400, seed=2, shift=0.1)
    expected = float(other.poly_mmd(real.double(), fake.double()))
    assert squared_discrepancy(real, fake) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_points_with_known_answer():
    real, fake = torch.tensor([[1.0], [1.0]]), torch.tensor([[-1.0], [-1.0]])
    # k(1, 1) = 8, k(1, -1) = 0
    assert squared_discrepancy(real, fake) == pytest.approx(16)


def test_kernel_distance_of_one_distribution_holds_zero_in_its_interval():
    found = kernel_distance(features(2000, seed=1), features(2000, seed=2))
    assert found.low < 0 < found.high
    apart = kernel_distance(features(2000, seed=1), features(2000, seed=2, shift=0.5))
    assert apart.low > 0


# Inception score


def test_inception_score_is_that_of_torch_fidelity():
    other = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * features(300, 10, seed=5)
    expected = other.isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    found = inception_score(logits.log_softmax(1).split(70))
    assert found.value == pytest.approx(expected, rel=1e-3)


def test_inception_score_with_known_answers():
    sure = torch.eye(4).repeat(50, 1).clamp(min=1e-38).log()  # each image a class, evenly
    assert inception_score([sure]).value == pytest.approx(4)
    assert inception_score([sure[::4]] * 2).value == pytest.approx(1)  # one class alone
    assert inception_score([torch.zeros(200, 4).log_softmax(1)]).value == pytest.approx(1)


def test_inception_score_takes_zero_probabilities():
    logs = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]]).repeat(60, 1)
    assert inception_score([logs]).value == pytest.approx(2)


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x.softmax(1), lambda x: x * math.nan])
def test_what_is_no_log_probability_is_refused(change):
    logits = features(120, 10, seed=5)
    with pytest.raises(ValueError, match=r"exp sums to 1 .* use logits\.log_softmax\(1\)"):
        inception_score([logits.log_softmax(1), change(logits)])


def test_inception_score_takes_rounded_log_probabilities():
    logits = features(200, 100, seed=5)
    expected = inception_score([logits.log_softmax(1)]).value
    found = inception_score([logits.log_softmax(1).bfloat16()]).value
    assert found == pytest.approx(expected, rel=0.05)


# Neighbours


@pytest.mark.parametrize("k", [3, 5])
def test_neighbour_measures_are_those_of_prdc(k, capsys):
    other = pytest.importorskip("prdc")
    real, fake = features(700, 6, seed=1), features(610, 6, seed=2, shift=0.4, scale=1.2)
    expected = other.compute_prdc(real.numpy(), fake.numpy(), k)
    found = neighbour_measures(real, fake, k=k)
    for name, value in expected.items():
        assert getattr(found, name).value == pytest.approx(float(value), abs=1e-12), name


@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage"])
def test_neighbour_measures_without_a_group_are_those_of_the_other_images(name):
    other = pytest.importorskip("prdc")
    real, fake = features(203, 4, seed=1), features(167, 4, seed=2, shift=0.2)
    parts = []
    for group in range(10):
        kept = [rows[torch.arange(len(rows)) % 10 != group].numpy() for rows in (real, fake)]
        parts.append(float(other.compute_prdc(*kept, 5)[name]))
    found = getattr(neighbour_measures(real, fake, k=5), name)
    assert found.low > 0  # not cut
    assert found.low == pytest.approx(jackknife(found.value, parts, 167).low, abs=1e-9)


def test_more_neighbours_than_a_group_has():
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(110, 3, generator=generator) for _ in range(2))
    radius = torch.cdist(real, real).sort(1).values[:, 15]
    expected = (torch.cdist(fake, real) <= radius).any(1).double().mean().item()
    assert neighbour_measures(real, fake, k=15).precision.value == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, -1, 98, 500, 2.5])
def test_a_number_of_neighbours_out_of_range_is_refused(k):
    real, fake = features(109, 4, seed=1), features(130, 4, seed=2)
    neighbour_measures(real, fake, k=97)  # 98 images are left without the first group
    with pytest.raises(ValueError, match=f"k to be an integer from 1 to 97, got {k}"):
        neighbour_measures(real, fake, k=k)


def test_few_distances_are_held_however_many_images(monkeypatch):
    held, squared = [], set_measures._squared

    def counted(first: torch.Tensor, norms: torch.Tensor, *second: torch.Tensor) -> torch.Tensor:
        held.append(len(first) * len(second[0]))
        return squared(first, norms, *second)

    real, fake = features(300, seed=1), features(431, seed=2)
    expected = neighbour_measures(real, fake)
    monkeypatch.setattr(set_measures, "_squared", counted)
    monkeypatch.setattr(set_measures, "_DISTANCES", 3000)
    assert neighbour_measures(real, fake) == expected
    assert max(held) <= 3000


def test_neighbour_measures_with_known_answers():
    near, far = features(300, 4, seed=1), features(300, 4, seed=2, shift=1000.0)
    apart = neighbour_measures(near, far)
    assert (apart.precision.value, apart.recall.value, apart.coverage.value) == (0, 0, 0)
    same = neighbour_measures(near, near)
    assert (same.precision.value, same.recall.value, same.coverage.value) == (1, 1, 1)


# Intervals


def test_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    groups = torch.arange(1000) % 10
    found = jackknife(
        float(values.mean()), [float(values[groups != g].mean()) for g in range(10)], 1000
    )
    # Of groups of one size: the standard error of the mean of their ten means.
    group_means = torch.stack([values[groups == g].mean() for g in range(10)])
    expected = float(group_means.std()) / 10**0.5
    assert (found.high - found.value) / T_975 == pytest.approx(expected, rel=1e-9)


def test_quantiles_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    assert stats.t(GROUPS - 1).ppf(0.975) == pytest.approx(T_975, abs=5e-4)
    expected = stats.binomtest(37, 120).proportion_ci(method="wilson")
    assert _wilson(37 / 120, 120) == pytest.approx((expected.low, expected.high), rel=1e-4)


def test_intervals_hold_no_value_that_a_measure_cannot_take():
    parts = [0.0, 0.3] * 5
    assert jackknife(0.1, parts, 100).low < 0
    found = jackknife(0.1, parts, 100, least=0.0, most=0.2)
    assert (found.low, found.value, found.high) == (0.0, 0.1, 0.2)
    near = neighbour_measures(features(300, 4, seed=1), features(300, 4, seed=2))
    for one in (near.precision, near.recall, near.coverage):
        assert 0 <= one.low <= one.value <= one.high <= 1


def test_intervals_with_a_common_point_are_not_apart():
    first = Estimate(1.0, 0.5, 1.5, 10)
    assert not first.apart_from(Estimate(1.9, 1.5, 2.5, 10))
    assert first.apart_from(Estimate(2.0, 1.6, 2.5, 10))
