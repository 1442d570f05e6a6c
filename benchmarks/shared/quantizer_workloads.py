"""Work of the other quantisers, against those of vector-quantize-pytorch.

Residual quantisation takes the vectors and codebooks of an audio codec's encoder: Q codebooks of K
codes, each a sample of what the quantisers before it leave over.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import vqvae2_fast as vq2
from shared.workload import Run, Workload, sharing
from vqvae2_fast import ops

if TYPE_CHECKING:
    from collections.abc import Callable

DECAY, EPSILON = 0.8, 1e-5  # the defaults of vector-quantize-pytorch


def residual_data(q: int, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    """Vectors `[N, D]` and codebooks `[Q, K, D]`."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator)
    residual, codebooks = z, []
    for _ in range(q):
        codebooks.append(0.8 * residual[torch.randperm(n, generator=generator)[:k]])
        residual = residual - codebooks[-1][ops.nearest_code(residual, codebooks[-1])[0]]
    return z, torch.stack(codebooks)


def lucidrains(name: str, **arguments: Any) -> nn.Module:
    """A module of the package, which is imported only where it is compared with."""
    import vector_quantize_pytorch

    return getattr(vector_quantize_pytorch, name)(**arguments)


def lucidrains_residual(codebooks: Tensor) -> nn.Module:
    q, k, d = codebooks.shape
    layer = lucidrains("ResidualVQ", dim=d, num_quantizers=q, codebook_size=k)
    for each, codebook in zip(layer.layers, codebooks, strict=True):
        each._codebook.embed.data.copy_(codebook)
        each._codebook.embed_avg.data.copy_(codebook)
        each._codebook.initted.fill_(True)
    return layer


def residual_loop(z: Tensor, codebooks: Tensor) -> Run:
    """The fused operator's definition: one search after the other."""

    def run() -> Tensor:
        residual = z
        for codebook in codebooks:
            residual = residual - codebook[ops.nearest_code(residual, codebook)[0]]
        return z - residual

    return run


def residual_lucidrains(z: Tensor, codebooks: Tensor) -> Run:
    layer = lucidrains_residual(codebooks).eval()
    return torch.no_grad()(lambda: layer(z[None]))


def residual_step_ours(z: Tensor, codebooks: Tensor, dz_q: Tensor) -> Run:
    z, codebooks = z.clone().requires_grad_(), codebooks.clone()
    embed_avg, cluster_size = codebooks.clone(), torch.ones(codebooks.shape[:2])

    def run() -> None:
        z.grad = None
        z_q, indices, commitments = ops.residual_nearest_code(z, codebooks, rotate=True)
        torch.autograd.backward([z_q, commitments.sum()], [dz_q, torch.ones(())])
        counts, sums = ops.residual_code_statistics(z, codebooks, indices)
        for each in zip(counts, sums, cluster_size, embed_avg, codebooks, strict=True):
            ops.ema_update_(*each, DECAY, EPSILON)

    return run


def module_step(make: Callable[[], nn.Module], z: Tensor, dz_q: Tensor) -> Run:
    """Forward and backward of a quantiser in training mode: its result first, losses among the
    others."""
    layer, z = make().train(), z.clone().requires_grad_()

    def run() -> None:
        z.grad = None
        z_q, *others = layer(z)
        losses = [each for each in others if each.requires_grad]
        gradients = [dz_q, *(torch.ones_like(each) for each in losses)]
        torch.autograd.backward([z_q, *losses], gradients)

    return run


def residual(q: int, n: int, k: int, d: int) -> Workload:
    makers: dict[str, Callable[[Tensor, Tensor], Run]] = {
        "ours": lambda z, codebooks: partial(ops.residual_nearest_code, z, codebooks),
        "loop": residual_loop,
        "lucidrains": residual_lucidrains,
    }
    traffic = 8 * n * d + 4 * q * k * d + 8 * n * q
    operators = ("residual_nearest_code", "nearest_code")  # the latter in `loop`
    flops = 2 * q * n * k * d
    contenders = sharing(partial(residual_data, q, n, k, d), makers)
    return Workload(operators, f"residual_{q}", (n, k, d), flops, traffic, contenders)


def residual_step_lucidrains(z: Tensor, codebooks: Tensor, dz_q: Tensor) -> Run:
    return module_step(partial(lucidrains_residual, codebooks), z[None], dz_q[None])


def residual_step(q: int, n: int, k: int, d: int) -> Workload:
    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        dz_q = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
        return *residual_data(q, n, k, d), dz_q

    makers = {"ours": residual_step_ours, "lucidrains": residual_step_lucidrains}
    traffic = 4 * 6 * n * d + 4 * 5 * q * k * d + 8 * n * q
    operators = (
        *("residual_nearest_code", "residual_nearest_code_backward"),
        *("residual_code_statistics", "ema_update_"),
    )
    flops = 2 * q * n * k * d
    contenders = sharing(inputs, makers)
    return Workload(operators, f"residual_step_{q}", (n, k, d), flops, traffic, contenders)


FSQ_LEVELS = [8, 5, 5, 5]


def scalar_step(
    operators: tuple[str, ...],
    ours: nn.Module,
    theirs: Callable[[], nn.Module],
    n: int,
    k: int,
    d: int,
) -> Workload:
    """A training step of a quantiser without a codebook, on `[16, N / 16, D]`."""

    def inputs() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, 16, n // 16, d, generator=generator).unbind()

    makers = {
        "ours": partial(module_step, lambda: ours),
        "lucidrains": partial(module_step, theirs),
    }
    kind = type(ours).__name__.lower()
    # z and dz_q are read, z_q, dz and indices are written.
    traffic = 4 * 4 * n * d + 8 * n
    contenders = sharing(inputs, makers)
    return Workload(operators, f"{kind}_step", (n, k, d), 10 * n * d, traffic, contenders)


def fsq_step(n: int) -> Workload:
    operators = ("scalar_quantize", "scalar_quantize_backward")
    theirs = partial(lucidrains, "FSQ", levels=FSQ_LEVELS)
    return scalar_step(operators, vq2.FSQ(FSQ_LEVELS), theirs, n, 1000, 4)


def lfq_step(n: int) -> Workload:
    theirs = partial(lucidrains, "LFQ", dim=10)
    return scalar_step(("sign_quantize",), vq2.LFQ(2**10), theirs, n, 1024, 10)


QUANTIZER_WORKLOADS: dict[str, Callable[[], Workload]] = {
    "residual": partial(residual, 8, 16384, 1024, 128),
    "residual_step": partial(residual_step, 8, 16384, 1024, 128),
    "fsq_step": partial(fsq_step, 65536),
    "lfq_step": partial(lfq_step, 65536),
}
