"""What the benchmarks of operators run: every contender does the work, from the same state."""

from __future__ import annotations

import pytest
import torch
from helpers.compare import RecordedOperators

from vqvae2_fast import ops


@pytest.fixture
def workloads(measuring):
    return measuring("shared.workloads")


@pytest.fixture
def small(workloads, measuring):
    """Workloads of few vectors by name, one of each maker."""
    quantizers = measuring("shared.quantizer_workloads")
    return {
        "search": workloads.search("search", "gaussian", 64, 16, 8, ("ours",)),
        "step": workloads.training_step(64, 16, 8),
        "statistics": workloads.statistics("spread", 64, 16, 8),
        "ema": workloads.ema(16, 8),
        "residual": quantizers.residual(2, 64, 16, 8),
        "residual_step": quantizers.residual_step(2, 64, 16, 8),
        "fsq_step": quantizers.fsq_step(64),
        "lfq_step": quantizers.lfq_step(64),
        "call": workloads.overhead("vector_quantize", gradients=True),
    }


def test_a_workload_names_every_operator_that_it_times(small):
    for name, workload in small.items():
        makers = [make for who, make in workload.contenders.items() if who in ("ours", "loop")]
        runs = [make() for make in makers]
        with RecordedOperators() as recorded:
            for run in runs:
                run()
        assert set(recorded.names) == set(workload.operators), name


def test_contenders_share_inputs_that_are_made_for_the_first(measuring):
    made = []

    def inputs():
        made.append(torch.zeros(2))
        return tuple(made)

    makers = measuring("shared.workload").sharing(inputs, dict.fromkeys("ab", lambda z: lambda: z))
    assert (list(makers), made) == (["a", "b"], [])
    assert makers["b"]()() is makers["a"]()()
    assert len(made) == 1


def test_the_pytest_suite_has_every_contender_without_making_inputs(
    workloads, measuring, monkeypatch
):
    def refuse(*arguments):
        raise AssertionError("inputs were made")

    monkeypatch.setattr(workloads, "data", refuse)
    monkeypatch.setattr(measuring("shared.quantizer_workloads"), "residual_data", refuse)
    pairs = {
        (name, contender)
        for name, make in workloads.WORKLOADS.items()
        for contender in make().contenders
    }
    (marks,) = [
        mark
        for mark in measuring("test_operators").test_speed.pytestmark
        if mark.name == "parametrize"
    ]
    assert set(marks.args[1]) == pairs
    assert {("residual", "loop"), ("step", "lean_compiled")} < pairs


@pytest.fixture
def step():
    """Vectors, codes and a gradient: what a training step takes."""
    generator = torch.Generator().manual_seed(0)
    z, dz_q = torch.randn(2, 64, 8, generator=generator)
    return z, z[:16] + 0.1 * torch.randn(16, 8, generator=generator), dz_q


@pytest.mark.parametrize("kind", ["gaussian", "offset", "clustered"])
def test_lean_search_in_chunks_finds_the_codes_of_the_whole(workloads, kind):
    """Also in a last chunk that is short."""
    z, codebook = workloads.data(kind, 2 * workloads.LEAN_CHUNK + 7, 16, 8)
    found = workloads.lean_search_in_chunks(z, codebook)
    assert torch.equal(found, workloads.lean_search(z, codebook))
    assert torch.equal(found, ops.nearest_code(z, codebook)[0])


def our_step(workloads, z, codebook, dz_q):
    """z_q, the gradient of z and the codebook after one step of ours."""
    state, z = workloads.Codebook.of(codebook), z.clone().requires_grad_()
    z_q, indices, commitment = ops.vector_quantize(z, state.codebook)
    torch.autograd.backward([z_q, workloads.BETA * commitment], [dz_q, torch.ones(())])
    counts, sums = ops.code_statistics(z, indices, len(codebook))
    averages = (state.cluster_size, state.embed_avg, state.codebook)
    ops.ema_update_(counts, sums, *averages, workloads.DECAY, workloads.EPSILON)
    return z_q.detach(), z.grad, state.codebook


def test_lucidrains_layer_does_the_step_that_ours_does(workloads, step):
    pytest.importorskip("vector_quantize_pytorch")
    z, codebook, dz_q = step
    layer = workloads.lucidrains_layer(codebook)
    leaf = z[None].clone().requires_grad_()
    z_q, _, loss = layer(leaf)
    torch.autograd.backward([z_q, loss.sum()], [dz_q[None], torch.ones(())])
    theirs = z_q.detach()[0], leaf.grad[0], layer._codebook.embed[0]
    torch.testing.assert_close(theirs, our_step(workloads, *step))


@pytest.mark.parametrize("search", ["lean_search", "lean_search_in_chunks"])
@pytest.mark.parametrize("statistics", ["plain_statistics", "onehot_statistics"])
def test_the_plain_step_gives_what_ours_gives(workloads, step, search, statistics):
    """By the parts of a CPU and those of a GPU."""
    z, codebook, dz_q = step
    state = workloads.Codebook.of(codebook)
    parts = {"search": getattr(workloads, search), "statistics": getattr(workloads, statistics)}
    averages = (state.codebook, state.cluster_size, state.embed_avg)
    found = workloads.plain_step(z, dz_q, *averages, **parts)
    torch.testing.assert_close((*found, state.codebook), our_step(workloads, *step))


def test_the_step_of_a_gpu_has_contenders_that_run(measuring, monkeypatch):
    """On this processor, without the compiled ones."""
    gpu_workloads = measuring("shared.gpu_workloads")
    randn, device = torch.randn, torch.device("cpu")
    monkeypatch.setattr(torch, "randn", lambda *size, **_: randn(*size, device=device))
    contenders = gpu_workloads.quantiser_step(64, 16, 8).contenders
    assert list(contenders) == ["ours", "onehot", "lean", "onehot_compiled", "lean_compiled"]
    for name in ("ours", "onehot", "lean"):
        contenders[name]()()
