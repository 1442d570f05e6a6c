"""How a codebook starts, and how codes that nobody uses start again."""

import copy

import pytest
import torch

from vqvae2_fast.compat import lucidrains  # noqa: F401  (defines an operator)
from vqvae2_fast.modules.averages import Rule
from vqvae2_fast.modules.batch import Vectors, kmeans
from vqvae2_fast.modules.grouped import MultiHeadVQ
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.residual_vq import ResidualVQ
from vqvae2_fast.ops.gumbel_noise.op import random_words

K, D = 10, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def restart_rows(num_rows: int, step: int, seed: int = 0, stream: int = 0) -> torch.Tensor:
    """The row that each code restarts from: philox(seed, step, k) mod N, purpose 2."""
    codes, at = torch.arange(K), torch.tensor(step)
    words = random_words(codes, at, torch.tensor(0), seed=seed, stream=stream, purpose=2)
    return words % num_rows


def test_normal_start_is_standard_normal() -> None:
    codebook = VectorQuantizerEMA(512, 64, init="normal").codebook
    assert codebook.mean().abs() < 0.02
    assert codebook.std().item() == pytest.approx(1, abs=0.02)


def test_uniform_start_is_sonnets() -> None:
    codebook = VectorQuantizerEMA(512, 48, init="uniform").codebook
    limit = (3 / 48) ** 0.5
    assert 0.99 * limit < codebook.abs().max() <= limit
    assert codebook.std().item() == pytest.approx(48**-0.5, rel=0.02)


def test_start_depends_on_seed_and_stream_alone() -> None:
    first = VectorQuantizerEMA(K, D, init="normal", seed=5, stream=1).codebook
    torch.manual_seed(99)
    assert torch.equal(first, VectorQuantizerEMA(K, D, init="normal", seed=5, stream=1).codebook)
    assert not torch.equal(first, VectorQuantizerEMA(K, D, init="normal", seed=5).codebook)
    assert not torch.equal(first, VectorQuantizerEMA(K, D, init="normal", stream=1).codebook)


def test_no_two_codebooks_of_a_quantiser_start_alike() -> None:
    """Their streams have 16 bits, of which 8 number the codebooks of a level."""
    with pytest.raises(ValueError, match="expected stream .* to 65535"):
        MultiHeadVQ(257, 4, 257, init="normal")
    parts = MultiHeadVQ(256, 4, 256, init="normal").parts
    assert len({tuple(part.codebook.flatten().tolist()) for part in parts}) == 256


def test_kmeans_start_is_ten_lloyd_iterations_from_chosen_rows() -> None:
    quantizer = VectorQuantizerEMA(K, D, seed=11, stream=2, update="step")
    # Enough vectors that an eleventh iteration would still move the means.
    z = torch.randn(2000, D)
    quantizer(z)
    wide = z.double()
    means = wide[restart_rows(2000, 0, seed=11, stream=2)]
    for _ in range(10):
        nearest = torch.cdist(wide, means).argmin(1)
        for k in nearest.unique():
            means[k] = wide[nearest == k].mean(0)
    torch.testing.assert_close(quantizer.codebook.double(), means, rtol=1e-5, atol=1e-6)
    assert torch.equal(quantizer.embed_avg, quantizer.codebook)
    assert torch.equal(quantizer.cluster_size, torch.ones(K))


def test_kmeans_start_with_fewer_vectors_than_codes_takes_the_vectors() -> None:
    quantizer = VectorQuantizerEMA(K, D, update="step")
    z = torch.randn(3, D)
    quantizer(z)
    distances = torch.cdist(quantizer.codebook, z).amin(1)
    assert distances.max() < 1e-6


def test_kmeans_start_happens_once() -> None:
    quantizer = VectorQuantizerEMA(K, D, update="step")
    quantizer(torch.randn(50, D))
    codebook = quantizer.codebook.clone()
    quantizer(torch.randn(50, D) + 100)
    assert torch.equal(quantizer.codebook, codebook)


def test_kmeans_start_waits_for_the_first_vectors() -> None:
    quantizer = VectorQuantizerEMA(K, D)
    quantizer(torch.zeros(0, D))
    assert not quantizer.initialised
    assert quantizer.steps == 0
    z = torch.randn(50, D) + 100
    quantizer(z)
    assert quantizer.initialised
    assert (quantizer.codebook - 100).abs().max() < 10


def test_kmeans_start_does_not_happen_in_evaluation() -> None:
    quantizer = VectorQuantizerEMA(K, D).eval()
    quantizer(torch.randn(50, D))
    assert not quantizer.initialised


def waiting_quantizer(updates: int) -> VectorQuantizerEMA:
    return VectorQuantizerEMA(K, D, update="step", quantize_after=updates)


def test_vectors_pass_unchanged_while_quantisation_waits() -> None:
    quantizer = waiting_quantizer(2)
    z = torch.randn(50, D, requires_grad=True)
    z_q, indices, loss = quantizer(z)
    assert torch.equal(z_q, z)
    assert torch.equal(indices, torch.zeros(50, dtype=torch.int64))
    (z_q.sum() + loss).backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_kmeans_starts_from_the_batch_after_the_wait() -> None:
    quantizer = waiting_quantizer(2)
    for _ in range(2):
        quantizer(torch.randn(50, D))
        quantizer.update_codebook_()
        assert not quantizer.initialised
    at_once = VectorQuantizerEMA(K, D, update="step")
    z = torch.randn(50, D) + 100
    quantizer(z)
    at_once(z)
    assert torch.equal(quantizer.codebook, at_once.codebook)


def debiased_codebooks(wait: int) -> list[torch.Tensor]:
    """Codebooks of a `ResidualVQ` after the update that follows the wait."""
    quantizer = ResidualVQ(
        K, D, 2, ema_start="debiased", restart=0, update="step", quantize_after=wait
    )
    z = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    for _ in range(wait + 1):
        quantizer(z)
        for book in quantizer.quantizers:
            book.update_codebook_()
    return [book.codebook for book in quantizer.quantizers]


def test_debiased_averages_start_with_the_first_vectors_after_a_wait() -> None:
    after, at_once = debiased_codebooks(wait=20), debiased_codebooks(wait=0)
    # The smoothing's epsilon is as large as before, and counts of an average from zero are smaller.
    torch.testing.assert_close(after, at_once, rtol=1e-3, atol=1e-4)


def test_forwards_without_an_update_do_not_shorten_the_wait() -> None:
    quantizer = waiting_quantizer(1)
    for _ in range(3):
        quantizer(torch.randn(50, D))
    assert not quantizer.initialised


def test_a_loaded_quantizer_waits_for_what_is_left() -> None:
    quantizer = waiting_quantizer(3)
    for _ in range(2):
        quantizer(torch.randn(50, D))
        quantizer.update_codebook_()
    loaded = waiting_quantizer(3)
    loaded.load_state_dict(quantizer.state_dict())
    loaded(torch.randn(50, D))
    assert not loaded.initialised
    loaded.update_codebook_()
    loaded(torch.randn(50, D))
    assert loaded.initialised


@pytest.mark.parametrize("ema_start", ["one", "zero", "debiased"])
def test_unused_codes_restart_from_the_chosen_rows(ema_start: str) -> None:
    quantizer = VectorQuantizerEMA(
        K, D, decay=0.1, init="normal", ema_start=ema_start, restart=0.5, seed=3, stream=1
    )
    # The second half of the codes is out of reach.
    codebook = torch.randn(K, D)
    codebook[K // 2 :] += 1000
    quantizer.set_codebook_(codebook)
    without = copy.deepcopy(quantizer)
    without.restart = 0
    z = torch.randn(400, D)
    quantizer(z)
    without(z)

    mean = without.cluster_size.mean()
    unused = without.cluster_size < 0.5 * mean
    assert unused[K // 2 :].all()
    rows = z[restart_rows(400, 1, seed=3, stream=1)]
    assert torch.equal(quantizer.codebook[unused], rows[unused])
    torch.testing.assert_close(quantizer.cluster_size[unused], mean.expand(int(unused.sum())))
    torch.testing.assert_close(quantizer.embed_avg[unused], rows[unused] * mean)
    assert torch.equal(quantizer.codebook[~unused], without.codebook[~unused])
    assert torch.equal(quantizer.cluster_size[~unused], without.cluster_size[~unused])


def test_restarted_codes_are_used() -> None:
    quantizer = VectorQuantizerEMA(64, D, decay=0.9, init="normal")
    quantizer.set_codebook_(quantizer.codebook + 50)
    for _ in range(60):
        quantizer(torch.randn(256, D))
    assert quantizer.usage > 0.9


def test_no_more_codes_restart_than_there_are_vectors() -> None:
    """Of several codes that restarted from one vector only the first would ever be chosen."""
    quantizer = VectorQuantizerEMA(64, D, decay=0.0, init="normal", restart=0.5)
    quantizer.set_codebook_(torch.cat([torch.zeros(1, D), torch.full((63, D), 1000.0)]))
    quantizer(torch.randn(5, D))
    # One code took all five vectors, and five more start again from them.
    assert (quantizer.cluster_size > 0).tolist() == [True] * 6 + [False] * 58


def test_restart_zero_leaves_unused_codes_alone() -> None:
    quantizer = VectorQuantizerEMA(64, D, decay=0.9, init="normal", restart=0)
    quantizer.set_codebook_(quantizer.codebook + 50)
    for _ in range(60):
        quantizer(torch.randn(256, D))
    assert quantizer.usage < 0.1


def test_no_code_restarts_at_the_first_step_for_having_started_at_one() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal")
    without = copy.deepcopy(quantizer)
    without.restart = 0
    # 1000 vectors per code: N / K is far above all counts, which start at one.
    z = torch.randn(1000 * K, D)
    quantizer(z)
    without(z)
    assert torch.equal(quantizer.cluster_size, without.cluster_size)


def test_restarts_draw_anew_at_each_step() -> None:
    assert not torch.equal(restart_rows(1000, 1), restart_rows(1000, 2))
    quantizer = VectorQuantizerEMA(K, D, init="normal", decay=0.1, restart=0.5)
    z = torch.randn(400, D)
    for step in (1, 2):
        codebook = torch.randn(K, D)
        codebook[-1] += 1000
        quantizer.set_codebook_(codebook)
        quantizer(z)
        assert torch.equal(quantizer.codebook[-1], z[restart_rows(400, step)[-1]])


def test_micro_batches_restart_from_the_latest() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", decay=0.1, restart=0.5, update="step")
    codebook = torch.randn(K, D)
    codebook[-1] += 1000
    quantizer.set_codebook_(codebook)
    first, latest = torch.randn(300, D), torch.randn(200, D)
    quantizer(first)
    quantizer(latest)
    quantizer.update_codebook_()
    assert torch.equal(quantizer.codebook[-1], latest[restart_rows(200, 1)[-1]])


@pytest.mark.parametrize("residual", [False, True])
def test_restarts_take_what_the_forward_saw(residual: bool) -> None:
    """A caller may load the next batch into the same memory before the update."""
    options = {"init": "normal", "decay": 0.1, "restart": 0.5, "update": "step"}
    make = ResidualVQ if residual else VectorQuantizerEMA
    module = make(*((K,), D) if residual else (K, D), **options)
    quantizer = module.quantizers[0] if residual else module
    codebook = torch.randn(K, D)
    codebook[-1] += 1000
    quantizer.set_codebook_(codebook)
    buffer = torch.randn(300, D)
    seen = buffer.clone()
    module(buffer)
    buffer.fill_(7)
    quantizer.update_codebook_()
    assert torch.equal(quantizer.codebook[-1], seen[restart_rows(300, 1)[-1]])


def test_no_restart_without_vectors() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", restart=0.5)
    sizes = torch.ones(K)
    sizes[0] = 1e-3
    quantizer.set_codebook_(torch.randn(K, D), sizes)
    quantizer(torch.zeros(0, D))
    assert quantizer.cluster_size[0] < 1e-3


def test_kmeans_of_parts_is_that_of_the_whole() -> None:
    z = torch.randn(60, D)
    whole = kmeans(Vectors([z], [], [0], 60), K, [(0, 60)], seed=1, stream=0)
    halves = Vectors([z[:25], z[25:]], [], [0, 25], 60)
    parts = kmeans(halves, K, halves.spans(), seed=1, stream=0)
    torch.testing.assert_close(parts, whole)


def _averages() -> list[torch.Tensor]:
    state = [torch.randn(K, D), torch.zeros(K), torch.zeros(K, D)]
    return [*state, torch.tensor(0), torch.tensor(False)]


def _start_of_one() -> tuple[tuple, dict]:
    arguments = ([torch.randn(20, D)], [], [], -1, _averages(), torch.tensor(False))
    return arguments, vars(Rule(metric="cosine", seed=3, stream=1))


def _start_of_two() -> tuple[tuple, dict]:
    settled = [torch.tensor(False) for _ in range(2)]
    arguments = (torch.randn(20, D), None, _averages() + _averages(), settled, [1, 2])
    return arguments, vars(Rule(seed=3))


def _start_of_a_drop_in() -> tuple[tuple, dict]:
    state = (torch.zeros(1, K, D), torch.zeros(1, K), torch.zeros(1, K, D))
    arguments = (torch.randn(1, 20, D), None, *state, torch.tensor(False), torch.tensor(False))
    return arguments, {"iterations": 2, "eps": 1e-5, "cosine": False, "sync_choice": False}


STARTS = {
    "start_codebook_": _start_of_one,
    "start_residual_codebooks_": _start_of_two,
    "lucidrains_start_": _start_of_a_drop_in,
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_writes_what_its_schema_says(name: str) -> None:
    operator = getattr(torch.ops.vqvae2_fast, name).default
    torch.library.opcheck(operator, *STARTS[name](), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("other", [{"init": "normal"}, {"update": "forward"}])
def test_a_wait_without_what_it_needs_is_refused(other):
    options = {"init": "kmeans", "update": "step", "quantize_after": 5} | other
    with pytest.raises(ValueError, match="with quantize_after=5, got init="):
        VectorQuantizerEMA(K, D, **options)
