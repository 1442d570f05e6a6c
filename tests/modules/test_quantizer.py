"""Rules of the codebook: lookup, moving averages, micro-batches, state, precision."""

import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae2_fast import ops
from vqvae2_fast.modules import averages, host
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA

K, D = 12, 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def state(quantizer: VectorQuantizerEMA) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def assert_same_state(one: VectorQuantizerEMA, other: VectorQuantizerEMA) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def one_hot(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Which code each vector takes, `[N, K]` float64."""
    indices = torch.cdist(z.double(), codebook.double()).argmin(1)
    return torch.nn.functional.one_hot(indices, K).double()


def smoothed(counts: torch.Tensor, epsilon: float) -> torch.Tensor:
    total = counts.sum()
    return (counts + epsilon) / (total + K * epsilon) * total


@pytest.mark.parametrize("ema_start", ["one", "zero"])
def test_updates_follow_the_one_hot_formula(ema_start: str) -> None:
    quantizer = VectorQuantizerEMA(K, D, decay=0.9, init="normal", ema_start=ema_start, restart=0)
    codebook = quantizer.codebook.double()
    sizes = torch.full((K,), 1.0 if ema_start == "one" else 0.0).double()
    averages = codebook.clone()
    for _ in range(4):
        z = torch.randn(64, D)
        encodings = one_hot(z, codebook)
        sizes = 0.9 * sizes + 0.1 * encodings.sum(0)
        averages = 0.9 * averages + 0.1 * encodings.T @ z.double()
        codebook = averages / smoothed(sizes, 1e-5)[:, None]
        quantizer(z)
    # Float32 against float64; a count near epsilon makes the quotient of a code large.
    torch.testing.assert_close(quantizer.cluster_size.double(), sizes, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(quantizer.embed_avg.double(), averages, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer.codebook.double(), codebook, rtol=1e-5, atol=1e-5)


def test_debiased_start_follows_sonnets_formula() -> None:
    quantizer = VectorQuantizerEMA(K, D, decay=0.9, init="uniform", ema_start="debiased", restart=0)
    codebook = quantizer.codebook.double()
    hidden_sizes, hidden_sums = torch.zeros(K).double(), torch.zeros(K, D).double()
    for step in range(1, 5):
        z = torch.randn(64, D)
        encodings = one_hot(z, codebook)
        hidden_sizes -= (hidden_sizes - encodings.sum(0)) * (1 - 0.9)
        hidden_sums -= (hidden_sums - encodings.T @ z.double()) * (1 - 0.9)
        debias = 1 - 0.9**step
        codebook = hidden_sums / debias / smoothed(hidden_sizes / debias, 1e-5)[:, None]
        quantizer(z)
    torch.testing.assert_close(quantizer.codebook.double(), codebook, rtol=1e-5, atol=1e-6)


def test_start_at_zero_flings_an_unused_code_far_out() -> None:
    quantizer = VectorQuantizerEMA(2, 1, init="normal", ema_start="zero", restart=0)
    quantizer.set_codebook_(torch.tensor([[0.0], [1.0]]))
    quantizer(torch.zeros(100, 1))
    # decay / epsilon, reduced by the smoothing's part of epsilon, as in the rosinality port.
    assert quantizer.codebook[1].item() == pytest.approx(0.99 / 1e-5, rel=1e-4)


def test_lookup_uses_the_codebook_from_before_the_update() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", decay=0.5)
    before = quantizer.codebook.clone()
    z_q, indices, _ = quantizer(torch.randn(40, D))
    assert torch.equal(z_q, before[indices])
    assert not torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_z_q_is_the_codebook_row_in_the_dtype_of_z(dtype: torch.dtype, gradient: str) -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", gradient=gradient).eval()
    z_q, indices, loss = quantizer(torch.randn(3, 7, D).to(dtype))
    assert torch.equal(z_q, quantizer.codebook[indices].to(dtype))
    assert indices.dtype == torch.int64
    assert loss.dtype == torch.float32


def test_loss_is_commitment_cost_times_mean_squared_distance() -> None:
    quantizer = VectorQuantizerEMA(K, D, commitment_cost=0.7, init="normal").eval()
    z = torch.randn(40, D)
    z_q, _, loss = quantizer(z)
    expected = 0.7 * (z.double() - z_q.double()).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_encode_does_not_count_in_training_mode() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", update="step")
    z = torch.randn(4, 6, D)
    indices = quantizer.encode(z)
    assert not quantizer.pending.counts.any()
    assert torch.equal(indices, quantizer(z)[1])


def test_micro_batches_add_up_to_one_batch() -> None:
    whole = VectorQuantizerEMA(K, D, init="normal", update="step", restart=0)
    parts = copy.deepcopy(whole)
    z = torch.randn(96, D)
    whole(z)
    for part in z.split(32):
        parts(part)
    assert torch.equal(parts.pending.counts, whole.pending.counts)
    torch.testing.assert_close(parts.pending.sums, whole.pending.sums, rtol=1e-6, atol=1e-6)
    whole.update_codebook_()
    parts.update_codebook_()
    assert torch.equal(parts.cluster_size, whole.cluster_size)
    torch.testing.assert_close(parts.codebook, whole.codebook, rtol=1e-6, atol=1e-6)


def test_pending_statistics_are_converted_with_the_module() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", update="step")
    quantizer(torch.randn(40, D))
    counts = quantizer.pending.counts.clone()
    pending = quantizer.double().pending
    assert pending.sums.dtype == torch.float64
    assert torch.equal(pending.counts, counts)


def test_update_step_moves_the_codebook_only_when_called() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", update="step")
    before = copy.deepcopy(quantizer)
    quantizer(torch.randn(40, D))
    assert_same_state(quantizer, before)
    quantizer.update_codebook_()
    assert not torch.equal(quantizer.codebook, before.codebook)
    assert not quantizer.pending.counts.any()
    assert not quantizer.pending.sums.any()


def test_both_ways_to_update_give_the_same_codebook() -> None:
    at_forward = VectorQuantizerEMA(K, D)
    at_step = VectorQuantizerEMA(K, D, update="step")
    for _ in range(3):
        z = torch.randn(50, D)
        at_forward(z)
        at_step(z)
        at_step.update_codebook_()
    assert_same_state(at_forward, at_step)


def test_backward_after_the_update_uses_the_codes_of_the_forward() -> None:
    quantizer = VectorQuantizerEMA(K, D, commitment_cost=1.0, init="normal", decay=0.5)
    z = torch.randn(40, D, requires_grad=True)
    z_q, _, loss = quantizer(z)
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * (z - z_q).detach() / z.numel())


def test_autocast_leaves_the_quantiser_in_float32() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal")
    plain = copy.deepcopy(quantizer)
    z = torch.randn(40, D).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        z_q, indices, loss = quantizer(z)
    _, plain_indices, plain_loss = plain(z.float())
    assert z_q.dtype == torch.bfloat16
    assert torch.equal(indices, plain_indices)
    assert torch.equal(loss, plain_loss)
    assert_same_state(quantizer, plain)


def test_perplexity_is_that_of_the_latest_forward() -> None:
    quantizer = VectorQuantizerEMA(4, 1, init="normal", restart=0)
    quantizer.set_codebook_(torch.arange(4.0)[:, None])
    for learning in (True, False):
        quantizer.train(learning)
        quantizer(torch.tensor([0.0, 0.0, 1.0, 2.0])[:, None])
        share = torch.tensor([0.5, 0.25, 0.25])
        expected = torch.exp(-(share * share.log()).sum())
        torch.testing.assert_close(quantizer.perplexity, expected)
        quantizer(torch.zeros(0, 1))
        assert quantizer.perplexity == 1


def test_usage_is_the_share_of_codes_in_the_latest_update() -> None:
    quantizer = VectorQuantizerEMA(4, 1, init="normal", update="step")
    quantizer.set_codebook_(torch.arange(4.0)[:, None])
    quantizer(torch.zeros(3, 1))
    quantizer(torch.ones(3, 1))
    quantizer.update_codebook_()
    assert quantizer.usage == 0.5


def test_the_perplexity_in_training_is_right_from_the_first_step() -> None:
    quantizer = VectorQuantizerEMA(50, 1, init="normal", ema_start="zero", restart=0)
    quantizer.set_codebook_(torch.arange(50.0)[:, None], torch.zeros(50))
    quantizer(torch.arange(50.0)[:, None])  # the averaged counts add up to 0.5
    assert quantizer.perplexity_in_training().item() == pytest.approx(50, rel=1e-3)


def test_nothing_changes_in_evaluation_mode() -> None:
    quantizer = VectorQuantizerEMA(K, D, update="step")
    quantizer(torch.randn(50, D))
    quantizer.update_codebook_()
    quantizer.eval()
    before = state(quantizer)
    quantizer(torch.randn(50, D))
    quantizer.update_codebook_()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("ema_start", ["one", "zero", "debiased"])
def test_no_vectors_give_no_nan(ema_start: str) -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", ema_start=ema_start)
    z_q, indices, loss = quantizer(torch.zeros(0, D))
    assert (z_q.shape, indices.shape, loss.item()) == ((0, D), (0,), 0.0)
    assert all(torch.isfinite(value).all() for value in quantizer.state_dict().values())


@pytest.mark.parametrize("ema_start", ["one", "debiased"])
def test_a_loaded_quantiser_continues_to_the_bit(ema_start: str) -> None:
    quantizer = VectorQuantizerEMA(K, D, ema_start=ema_start, seed=3)
    batches = [torch.randn(50, D) for _ in range(6)]
    for z in batches[:3]:
        quantizer(z)
    loaded = VectorQuantizerEMA(K, D, ema_start=ema_start, seed=3)
    loaded.load_state_dict(quantizer.state_dict())
    for z in batches[3:]:
        quantizer(z)
        loaded(z)
    assert_same_state(quantizer, loaded)
    assert bool(loaded.initialised)
    assert loaded.steps == 6


def test_loading_an_untrained_quantiser_asks_for_a_start_again() -> None:
    untrained, trained = VectorQuantizerEMA(K, D), VectorQuantizerEMA(K, D)
    fresh = state(untrained)
    z = torch.randn(50, D)
    untrained(z)
    trained(z)
    trained.load_state_dict(fresh)
    trained(z)
    assert_same_state(trained, untrained)


def test_set_codebook_starts_from_given_averages() -> None:
    quantizer = VectorQuantizerEMA(K, D)
    codebook, sizes, averages = torch.randn(K, D), torch.rand(K), torch.randn(K, D)
    quantizer.set_codebook_(codebook, sizes, averages)
    quantizer.eval()
    assert torch.equal(quantizer.lookup(torch.arange(K)), codebook)
    assert torch.equal(quantizer.cluster_size, sizes)
    assert torch.equal(quantizer.embed_avg, averages)
    quantizer.train()
    z_q, indices, _ = quantizer(torch.randn(40, D))
    assert torch.equal(z_q, codebook[indices])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"codebook": torch.ones(1, D)}, rf"expected codebook \[{K}, {D}\], got \[1, {D}\]"),
        ({"cluster_size": torch.ones(1)}, rf"expected cluster_size \[{K}\], got \[1\]"),
        ({"embed_avg": torch.ones(D)}, rf"expected embed_avg \[{K}, {D}\], got \[{D}\]"),
    ],
)
def test_set_codebook_takes_no_shape_that_would_be_broadcast(given, message) -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal")
    before = quantizer.codebook.clone()
    with pytest.raises(ValueError, match=message):
        quantizer.set_codebook_(**{"codebook": torch.zeros(K, D), **given})
    assert torch.equal(quantizer.codebook, before)


def test_set_codebook_late_in_training_starts_debiased_averages_anew() -> None:
    quantizer = VectorQuantizerEMA(4, 1, init="normal", ema_start="debiased", restart=0)
    for _ in range(30):
        quantizer(torch.randn(20, 1))
    codebook = torch.arange(4.0)[:, None]
    quantizer.set_codebook_(codebook)
    quantizer(codebook.repeat(5, 1))
    torch.testing.assert_close(quantizer.codebook, codebook, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ema_start", ["one", "zero", "debiased"])
def test_codes_given_with_their_counts_stay_where_vectors_equal_them(ema_start: str) -> None:
    quantizer = VectorQuantizerEMA(4, 1, init="normal", ema_start=ema_start, restart=0)
    codebook = torch.arange(4.0)[:, None]
    quantizer.set_codebook_(codebook, torch.full((4,), 7.0))
    quantizer(codebook.repeat(5, 1))
    torch.testing.assert_close(quantizer.codebook, codebook, rtol=1e-4, atol=1e-4)


def test_set_codebook_forgets_the_statistics_of_other_codes() -> None:
    quantizer = VectorQuantizerEMA(4, 1, init="normal", update="step", restart=0.5)
    codebook = torch.arange(4.0)[:, None]
    quantizer(torch.full((20, 1), 100.0))
    quantizer.set_codebook_(codebook)
    quantizer.update_codebook_()
    torch.testing.assert_close(quantizer.codebook, codebook)


class NoHostReads(TorchDispatchMode):
    """Fails when the host reads a value of a buffer, because on a GPU it would wait for it."""

    def __init__(self, quantizer: VectorQuantizerEMA) -> None:
        super().__init__()
        self.on_host = quantizer.phase.settled

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default or args[0] is self.on_host
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _reading_synchronises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Applies the rule for a GPU on the CPU, where buffers are otherwise read at every step."""
    for module in (averages, host):
        monkeypatch.setattr(module, "reading_synchronises", lambda _: True)


@pytest.mark.usefixtures("_reading_synchronises")
@pytest.mark.parametrize("ema_start", ["one", "debiased"])
def test_a_training_step_on_a_gpu_reads_nothing_on_the_host(ema_start: str) -> None:
    quantizer = VectorQuantizerEMA(K, D, ema_start=ema_start, restart=0.5)
    quantizer(torch.randn(40, D))
    z = torch.randn(40, D)
    with NoHostReads(quantizer):
        quantizer(z)
        quantizer.eval()(z)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "zeros"}, "expected init to be one of 'kmeans', .*, got 'zeros'"),
        ({"gradient": "none"}, "expected gradient to be one of .straight_through"),
        ({"decay": 1.0}, "expected decay .* < 1, got 1.0"),
        ({"restart": 1.5}, "expected restart .* < 1, got 1.5"),
        ({"epsilon": math.nan}, "expected epsilon .* >= 0, got nan"),
        ({"epsilon": 0.0, "restart": 0}, "expected epsilon > 0 with restart=0, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorQuantizerEMA(**{"num_embeddings": K, "embedding_dim": D, **arguments})


def test_an_attribute_of_the_rule_can_be_assigned_during_training() -> None:
    assigned = VectorQuantizerEMA(K, D, init="normal", decay=0.9)
    assigned.decay = 0.5
    made_so = VectorQuantizerEMA(K, D, init="normal", decay=0.5)
    z = torch.randn(40, D)
    assigned(z)
    made_so(z)
    assert_same_state(assigned, made_so)
    with pytest.raises(ValueError, match=r"expected decay .*< 1, got 1\.5"):
        assigned.decay = 1.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_training_with_another_codebook_than_float32_is_an_error(dtype: torch.dtype) -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal").to(dtype)
    with pytest.raises(TypeError, match="expected a float32 codebook in training, got"):
        quantizer(torch.randn(4, D).to(dtype))


def test_autocast_is_off_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("vector_quantize", "nearest_code"):
        inner = getattr(ops, name)

        def spy(*args, inner=inner):
            seen.append(torch.is_autocast_enabled("cpu"))
            return inner(*args)

        monkeypatch.setattr(ops, name, spy)
    quantizer = VectorQuantizerEMA(K, D)
    with torch.autocast("cpu", torch.bfloat16):
        quantizer(torch.randn(40, D))
        quantizer.encode(torch.randn(40, D))
    assert seen and not any(seen)
