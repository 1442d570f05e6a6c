"""What the benchmarks run: the inputs and contenders of each piece of work.

A contender is a function that makes a closure: everything that a user does once (building a layer,
compiling it) happens when it is made, everything that recurs in the closure. Contenders whose
package is missing are left out, with a message.

On every device `lean` is what a careful user writes in plain PyTorch, `onehot` how the widely used
port computes, `reference` our operator's reference, and `_compiled` any of them by torch.compile.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.quantizer_workloads import QUANTIZER_WORKLOADS, lucidrains
from shared.workload import Run, Workload, sharing
from vqvae2_fast import ops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Search = Callable[[Tensor, Tensor], Tensor]
    Statistics = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.compare import simd_levels  # noqa: E402

BETA, DECAY, EPSILON = 0.25, 0.99, 1e-5
# The best of 512 to 8,192 rows, or nearly so, for 256 to 1,024 codes on a Zen 5, 1 and 2 threads.
LEAN_CHUNK = 1024


def data(kind: str, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    """Vectors `[N, D]` and codes `[K, D]`.

    gaussian: both standard normal, the hardest for a screen among the natural ones. offset: the
    codes are vectors of the data, which lies 4 sigma from the origin. clustered: a mixture of K
    clusters whose widths differ, and the codes after two steps of k-means: what an encoder gives
    its codebook. flung: unused codes at 10^5 times their length, as the port leaves them. trained:
    of a trained encoder, whose preset says K and D.
    """
    if kind == "trained":
        from shared.trained_encoder import trained_vectors

        return trained_vectors(n)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator)
    codebook = torch.randn(k, d, generator=generator)
    if kind == "offset":
        z += 4
        codebook = z[torch.randperm(n, generator=generator)[:k]].clone()
    elif kind == "clustered":
        member = torch.randint(k, (n,), generator=generator)
        width = 0.1 + torch.rand(k, 1, generator=generator)
        z = codebook[member] + width[member] * z + 1
        for _ in range(2):
            counts, sums = ops.code_statistics(z, ops.nearest_code(z, codebook)[0], k)
            codebook = torch.where(
                counts[:, None] > 0, sums / counts[:, None].clamp(min=1), codebook
            )
    elif kind == "flung":
        codebook[::3] *= 1e5
    elif kind != "gaussian":
        raise ValueError(
            f"data: expected gaussian, offset, clustered, flung or trained, got {kind!r}."
        )
    return z, codebook


def search_faiss(z: Tensor, codebook: Tensor) -> Run:
    # The OpenBLAS in faiss's wheel treats processors that are newer than itself as a Prescott of
    # 2004, and is half as fast there as it could be. This is read when it is loaded.
    os.environ.setdefault("OPENBLAS_CORETYPE", openblas_core())
    # Threads of its own that spin keep the cores from those of its OpenBLAS: on two cores it took
    # 25 or 44 ms for the same search, depending on the process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    vectors = z.numpy()
    return lambda: index.search(vectors, 1)


def openblas_core() -> str:
    """The best kernels of OpenBLAS that this processor runs; an empty name leaves the choice to
    it."""
    levels = simd_levels()
    return "SkylakeX" if "avx512" in levels else "Haswell" if "avx2" in levels else ""


def lean_search(z: Tensor, codebook: Tensor) -> Tensor:
    """What a careful user of plain PyTorch writes for a GPU or a few vectors: one product, no
    distances."""
    half_norms = codebook.square().sum(1) / 2  # [K]
    return torch.addmm(half_norms, z, codebook.t(), alpha=-1).argmin(dim=1)


def lean_search_in_chunks(z: Tensor, codebook: Tensor) -> Tensor:
    """The same for a CPU, in chunks of rows, whose scores stay in its cache until they are read:
    all rows at once took up to twice as long."""
    half_norms, codes = codebook.square().sum(1) / 2, codebook.t()  # [K], [D, K]
    chunks = z.split(LEAN_CHUNK)
    found = [torch.addmm(half_norms, rows, codes, alpha=-1).min(dim=1).indices for rows in chunks]
    return torch.cat(found)


SEARCHES: dict[str, Callable[[Tensor, Tensor], Run]] = {
    "ours": lambda z, codebook: partial(ops.nearest_code, z, codebook),
    "faiss": search_faiss,
    "lean": lambda z, codebook: partial(lean_search_in_chunks, z, codebook),
    "cdist": lambda z, codebook: lambda: torch.cdist(z, codebook).argmin(dim=1),
}


@dataclass
class Codebook:
    """The state of a training step, one for each contender."""

    codebook: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    @classmethod
    def of(cls, codebook: Tensor) -> Codebook:
        sizes = torch.ones(len(codebook), device=codebook.device)
        return cls(codebook.clone(), sizes, codebook.clone())


def step_ours(z: Tensor, codebook: Tensor, dz_q: Tensor) -> Run:
    state, z = Codebook.of(codebook), z.clone().requires_grad_()
    one = torch.ones((), device=z.device)

    def run() -> None:
        z_q, indices, commitment = ops.vector_quantize(z, state.codebook)
        torch.autograd.backward([z_q, BETA * commitment], [dz_q, one])
        counts, sums = ops.code_statistics(z, indices, len(codebook))
        ops.ema_update_(
            counts, sums, state.cluster_size, state.embed_avg, state.codebook, DECAY, EPSILON
        )
        z.grad = None  # else the next run's peak of memory would lack it

    return run


def plain_statistics(z: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Counts `[K]` and sums `[K, D]` in plain PyTorch, no one-hot."""
    ones = torch.ones(len(z), device=z.device)
    counts = torch.zeros(k, device=z.device).index_add_(0, indices, ones)
    return counts, torch.zeros(k, z.shape[1], device=z.device).index_add_(0, indices, z)


def onehot_statistics(z: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by products with a one-hot matrix."""
    choice = F.one_hot(indices, k).float()  # [N, K]
    return choice.sum(0), choice.t() @ z


def plain_step(
    z: Tensor,
    dz_q: Tensor,
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    *,
    search: Search = lean_search_in_chunks,
    statistics: Statistics = plain_statistics,
) -> tuple[Tensor, Tensor]:
    """Search, gradient and averages in plain PyTorch; returns z_q and dz, of which a compiler
    leaves out what nobody gets."""
    indices = search(z, codebook)
    z_q = codebook[indices]
    dz = dz_q + (z - z_q) * (2 * BETA / z.numel())
    counts, sums = statistics(z, indices, len(codebook))
    cluster_size.mul_(DECAY).add_(counts, alpha=1 - DECAY)
    embed_avg.mul_(DECAY).add_(sums, alpha=1 - DECAY)
    total = cluster_size.sum()
    size = (cluster_size + EPSILON) / (total + len(cluster_size) * EPSILON) * total
    codebook.copy_(embed_avg / size[:, None])
    return z_q, dz


def step_lean(
    z: Tensor,
    codebook: Tensor,
    dz_q: Tensor,
    *,
    compile: bool = False,
    search: Search = lean_search_in_chunks,
    statistics: Statistics = plain_statistics,
) -> Run:
    state, step = Codebook.of(codebook), partial(plain_step, search=search, statistics=statistics)
    step = torch.compile(step) if compile else step
    return lambda: step(z, dz_q, state.codebook, state.cluster_size, state.embed_avg)


def step_onehot(z: Tensor, codebook: Tensor, dz_q: Tensor) -> Run:
    state, z = Codebook.of(codebook), z.clone().requires_grad_()

    def run() -> None:
        embed = state.codebook.t()
        distance = z.pow(2).sum(1, keepdim=True) - 2 * z @ embed + embed.pow(2).sum(0, keepdim=True)
        indices = (-distance).max(1)[1]
        onehot = F.one_hot(indices, len(codebook)).type(z.dtype)
        code = F.embedding(indices, state.codebook)
        with torch.no_grad():
            state.cluster_size.mul_(DECAY).add_(onehot.sum(0), alpha=1 - DECAY)
            state.embed_avg.mul_(DECAY).add_((z.t() @ onehot).t(), alpha=1 - DECAY)
            total = state.cluster_size.sum()
            size = (state.cluster_size + EPSILON) / (total + len(codebook) * EPSILON) * total
        commitment = (code.detach() - z).pow(2).mean()
        z_q = z + (code - z).detach()
        torch.autograd.backward([z_q, BETA * commitment], [dz_q, torch.ones(())])
        with torch.no_grad():
            state.codebook.copy_(state.embed_avg / size[:, None])
        z.grad = None

    return run


def lucidrains_layer(codebook: Tensor) -> nn.Module:
    """The layer that does what ours does: straight-through gradients, and the same state."""
    k, d = codebook.shape
    layer = lucidrains(
        "VectorQuantize",
        dim=d,
        codebook_size=k,
        decay=DECAY,
        eps=EPSILON,
        commitment_weight=BETA,
        rotation_trick=False,
    )
    layer._codebook.embed.copy_(codebook)
    layer._codebook.embed_avg.copy_(codebook)
    layer._codebook.cluster_size.fill_(1)
    return layer


def step_lucidrains(z: Tensor, codebook: Tensor, dz_q: Tensor) -> Run:
    layer = lucidrains_layer(codebook)
    z, dz_q = z[None].clone().requires_grad_(), dz_q[None]

    def run() -> None:
        z_q, _, loss = layer(z)
        torch.autograd.backward([z_q, loss.sum()], [dz_q, torch.ones(())])
        z.grad = None

    return run


def search(
    mode: str, kind: str, n: int, k: int, d: int, contenders: Sequence[str] = tuple(SEARCHES)
) -> Workload:
    makers = sharing(partial(data, kind, n, k, d), {name: SEARCHES[name] for name in contenders})
    traffic = 4 * (n + k) * d + 12 * n
    return Workload(("nearest_code",), mode, (n, k, d), 2 * n * k * d, traffic, makers)


def cost(size: str, n: int, k: int, d: int) -> Workload:
    """A point of the cost curve over one of n, k and d."""
    return search(f"cost_{size}", "gaussian", n, k, d, ("ours", "faiss"))


def training_step(n: int, k: int, d: int) -> Workload:
    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        dz_q = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
        return *data("clustered", n, k, d), dz_q

    makers = {
        "ours": step_ours,
        "onehot": step_onehot,
        "lucidrains": step_lucidrains,
        "lean": step_lean,
        "lean_compiled": partial(step_lean, compile=True),
    }
    operators = ("vector_quantize", "vector_quantize_backward", "code_statistics", "ema_update_")
    # z and dz_q are read, dz and z_q are written, and backward reads z and z_q again.
    traffic = 4 * 6 * n * d + 8 * n
    flops = 2 * n * k * d
    return Workload(operators, "step", (n, k, d), flops, traffic, sharing(inputs, makers))


def statistics(kind: str, n: int, k: int, d: int) -> Workload:
    def inputs() -> tuple[Tensor, Tensor, int]:
        z, codebook = data("clustered", n, k, d)
        if kind == "one_code":
            return z, torch.full((n,), k // 2), k
        return z, ops.nearest_code(z, codebook)[0], k

    makers: dict[str, Callable[[Tensor, Tensor, int], Run]] = {
        "ours": lambda z, indices, k: partial(ops.code_statistics, z, indices, k),
        "lean": lambda z, indices, k: partial(plain_statistics, z, indices, k),
        "onehot": lambda z, indices, k: lambda: F.one_hot(indices, k).float().t() @ z,
    }
    mode = "statistics" if kind == "spread" else f"statistics_{kind}"
    traffic = 4 * (n + k) * d + 8 * n
    contenders = sharing(inputs, makers)
    return Workload(("code_statistics",), mode, (n, k, d), n * d, traffic, contenders)


def ema(k: int, d: int) -> Workload:
    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        return data("gaussian", 1, k, d)[1], torch.randint(9, (k,)), torch.randn(k, d)

    def make(update: Callable[..., object], codebook: Tensor, counts: Tensor, sums: Tensor) -> Run:
        state = Codebook.of(codebook)
        return lambda: update(
            counts, sums, state.cluster_size, state.embed_avg, state.codebook, DECAY, EPSILON
        )

    makers = {
        "ours": partial(make, ops.ema_update_),
        "reference": partial(make, ops.OPERATORS["ema_update_"].reference),
    }
    contenders = sharing(inputs, makers)
    return Workload(("ema_update_",), "ema", (0, k, d), 4 * k * d, 4 * 6 * k * d, contenders)


def overhead(op: str, *, gradients: bool = False) -> Workload:
    """One vector against a small codebook, which shows the cost of a call."""
    n, k, d = 1, 8, 8

    def inputs() -> tuple[Tensor, Tensor]:
        z, codebook = data("gaussian", n, k, d)
        return z.requires_grad_(gradients), codebook

    makers: dict[str, Callable[[Tensor, Tensor], Run]] = {
        "ours": lambda z, codebook: partial(getattr(ops, op), z, codebook),
        "lean": lambda z, codebook: lambda: codebook[lean_search(z, codebook)],
    }
    mode = f"call_{op}" + ("_gradients" if gradients else "")
    traffic = 4 * (n + k) * d
    return Workload((op,), mode, (n, k, d), 2 * n * k * d, traffic, sharing(inputs, makers))


# Name to maker. Inputs are made with the first contender of a workload.
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "search": partial(search, "search", "gaussian", 65536, 512, 64),
    "search_offset": partial(search, "search_offset", "offset", 65536, 512, 64),
    "search_clustered": partial(search, "search_clustered", "clustered", 65536, 512, 64),
    "search_flung": partial(search, "search_flung", "flung", 65536, 512, 64),
    "search_trained": partial(search, "search_trained", "trained", 65536, 256, 32),
    "search_wide": partial(search, "search", "gaussian", 65536, 1024, 256),
    "search_many_codes": partial(search, "search", "gaussian", 16384, 8192, 32),
    **{
        f"codes_{k}x{d}": partial(search, "search", "gaussian", 16384, k, d, ("ours", "faiss"))
        for k in (16384, 65536)
        for d in (16, 32, 64)
    },
    "search_small": partial(search, "search", "gaussian", 256, 512, 64),
    "step": partial(training_step, 65536, 512, 64),
    "statistics": partial(statistics, "spread", 65536, 512, 64),
    "statistics_one_code": partial(statistics, "one_code", 65536, 512, 64),
    "ema": partial(ema, 512, 64),
    **QUANTIZER_WORKLOADS,
    "call_nearest_code": partial(overhead, "nearest_code"),
    "call_vector_quantize": partial(overhead, "vector_quantize"),
    "call_vector_quantize_gradients": partial(overhead, "vector_quantize", gradients=True),
    **{f"cost_n_{n}": partial(cost, "n", n, 512, 64) for n in (256 * 4**i for i in range(6))},
    **{f"cost_k_{k}": partial(cost, "k", 16384, k, 64) for k in (16 * 4**i for i in range(6))},
    **{f"cost_d_{d}": partial(cost, "d", 16384, 512, d) for d in (8 * 4**i for i in range(4))},
}
