"""What `gpu.py` measures: pieces of work, their arithmetic, minimum traffic and contenders.

Inputs are made when a piece is asked for, on the GPU. Contenders whose package is missing raise
`ModuleNotFoundError` when they are made.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from shared.training_steps import flops_of, make_step
from shared.workloads import (
    lean_search,
    onehot_statistics,
    plain_statistics,
    step_lean,
    step_ours,
)
from vqvae2_fast import ops
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.ops.causal_conv2d.op import CAUSAL_CONV2D_FUSED, causal_conv2d_reference
from vqvae2_fast.ops.code_conv2d.op import code_conv2d_reference
from vqvae2_fast.ops.draw_codes.op import draw_codes_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.workload import Run


@dataclass(frozen=True)
class Work:
    """A piece of work: its owner, arithmetic, minimum memory traffic in bytes, and contenders."""

    name: str
    owner: str
    flops: int
    bytes: int
    contenders: dict[str, Callable[[], Run]]


def flash_kmeans_search(z: torch.Tensor, codebook: torch.Tensor) -> Run:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    batch, codes = z[None], codebook[None]
    # Versions differ in whether they want the norms.
    wants_norms = "x_sq" in inspect.signature(euclid_assign_triton).parameters
    norms = {"x_sq": batch.square().sum(-1)} if wants_norms else {}
    return lambda: euclid_assign_triton(batch, codes, **norms)


def cuvs_search(z: torch.Tensor, codebook: torch.Tensor) -> Run:
    from cuvs.cluster import kmeans

    parameters = kmeans.KMeansParams(n_clusters=len(codebook))
    return lambda: kmeans.predict(parameters, z, codebook)


def search(n: int, k: int, d: int) -> Work:
    z, codebook = torch.randn(n, d, device="cuda"), torch.randn(k, d, device="cuda")
    owner = ops.owner("nearest_code", z, codebook)
    return Work(
        f"search {n}x{k}x{d}",
        owner,
        2 * n * k * d,
        4 * d * (n + k) + 12 * n,
        {
            "ours": lambda: lambda: ops.nearest_code(z, codebook),
            "lean": lambda: partial(lean_search, z, codebook),
            "lean_compiled": lambda: partial(torch.compile(lean_search), z, codebook),
            "flash-kmeans": lambda: flash_kmeans_search(z, codebook),
            "cuvs": lambda: cuvs_search(z, codebook),
        },
    )


def quantiser_step(n: int, k: int, d: int) -> Work:
    inputs = tuple(torch.randn(rows, d, device="cuda") for rows in (n, k, n))  # z, codes, dz_q
    lean = partial(step_lean, *inputs, search=lean_search)
    onehot = partial(lean, statistics=onehot_statistics)
    owner = ops.owner("vector_quantize", *inputs[:2])
    return Work(
        f"quantiser_step {n}x{k}x{d}",
        owner,
        2 * n * k * d,
        4 * d * 7 * n,
        {
            "ours": partial(step_ours, *inputs),
            "onehot": onehot,
            "lean": lean,
            "onehot_compiled": partial(onehot, compile=True),
            "lean_compiled": partial(lean, compile=True),
        },
    )


def statistics_of(n: int, k: int, d: int) -> Work:
    z, indices = torch.randn(n, d, device="cuda"), torch.randint(k, (n,), device="cuda")
    owner = ops.owner("code_statistics", z, indices, k)
    return Work(
        f"statistics {n}x{k}x{d}",
        owner,
        n * d,
        4 * n * d + 8 * n,
        {
            "ours": lambda: partial(ops.code_statistics, z, indices, k),
            "lean": lambda: partial(plain_statistics, z, indices, k),
        },
    )


def attention(batch: int, heads: int, side: int, width: int, dtype: torch.dtype) -> Work:
    length = side * side
    q, k, v = (
        torch.randn(batch, heads, length, width, device="cuda", dtype=dtype, requires_grad=True)
        for _ in range(3)
    )
    dout, seed = torch.randn_like(q), torch.tensor(1, device="cuda")

    def step(dropout_p: float) -> None:
        out = ops.causal_attention(q, k, v, dropout_p, "logits", seed if dropout_p else None)
        torch.autograd.grad(out, (q, k, v), dout)

    # Seven products of half the matrix: two forward, five backward.
    flops = 7 * batch * heads * length * length * width
    name = f"attention {batch}x{heads}x{side}²x{width} {dtype_name(dtype)}"
    owner = ops.OPERATORS["causal_attention"].owner(q, k, v, 0.1, "logits", seed)
    return Work(
        name,
        owner,
        flops,
        q.element_size() * q.numel() * 12,
        {
            "ours": lambda: partial(step, 0.1),
            "sdpa without dropout": lambda: partial(step, 0.0),
        },
    )


def gate(batch: int, channels: int, side: int) -> Work:
    h = torch.randn(batch, 2 * channels, side, side, device="cuda", requires_grad=True)
    x = torch.randn(batch, channels, side, side, device="cuda", requires_grad=True)
    dout = torch.randn_like(x)

    def step(function: Callable[..., torch.Tensor]) -> None:
        torch.autograd.grad(function(h, x), (h, x), dout)

    def lean(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return F.glu(h, dim=1) + x

    owner = ops.owner("gated_residual", h, x)
    return Work(
        f"gate {batch}x{channels}x{side}²",
        owner,
        10 * x.numel(),
        36 * x.numel(),
        {
            "ours": lambda: partial(step, ops.gated_residual),
            "lean": lambda: partial(step, lean),
            "lean_compiled": lambda: partial(step, torch.compile(lean)),
        },
    )


def convolution(batch: int, channels: int, side: int, dtype: torch.dtype) -> Work:
    """A gated layer's 5×5 convolution and its gradients; cuDNN's TF32 is off here."""
    layout = torch.channels_last
    x = torch.randn(batch, channels, side, side, device="cuda", dtype=dtype, requires_grad=True)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(2 * channels, channels, 5, 5, device="cuda", dtype=dtype) / 50
    weight.requires_grad_()
    dout = torch.randn(batch, 2 * channels, side, side, device="cuda", dtype=dtype)
    dout = dout.contiguous(memory_format=layout)

    def step(function: Callable[..., torch.Tensor]) -> None:
        torch.autograd.grad(function(x, weight, None, "exclude"), (x, weight), dout)

    # 22 of 25 taps are live; the forward product and two of the same size backward.
    flops = 3 * 2 * batch * side**2 * 22 * channels * 2 * channels
    values = 4 * x.numel() + 3 * dout.numel() + 3 * weight.numel()
    name = f"convolution {batch}x{channels}x{side}² {dtype_name(dtype)}"
    operator = ops.OPERATORS["causal_conv2d"]
    owner = operator.owner(x, weight, None, "exclude")
    return Work(
        name,
        owner,
        flops,
        x.element_size() * values,
        {
            "ours": lambda: partial(step, operator),
            "kernel": lambda: partial(step, CAUSAL_CONV2D_FUSED.kernel),
            "cudnn": lambda: partial(step, causal_conv2d_reference),
            "reference_compiled": lambda: partial(step, torch.compile(causal_conv2d_reference)),
        },
    )


def stem(batch: int, side: int, num_codes: int, channels: int) -> Work:
    """The stem of kernel 7 and the gradient of its table."""
    above = [(row, column) for row in range(-3, 0) for column in range(-3, 4)]
    offsets = above + [(row, column) for row in range(-3, 1) for column in range(-3, 0)]
    codes = torch.randint(num_codes, (batch, side, side), device="cuda")
    table = torch.randn(len(offsets), num_codes, channels, device="cuda", requires_grad=True)
    dout = torch.randn(batch, channels, side, side, device="cuda")
    dout = dout.contiguous(memory_format=torch.channels_last)
    flat = [distance for offset in offsets for distance in offset]
    weight = torch.randn(channels, num_codes, 7, 7, device="cuda", requires_grad=True)

    def step(function: Callable[..., torch.Tensor]) -> None:
        torch.autograd.grad(function(codes, table, flat), table, dout)

    def one_hot() -> None:
        hot = F.one_hot(codes, num_codes).permute(0, 3, 1, 2).float()
        torch.autograd.grad(F.conv2d(hot, weight, padding=3), weight, dout)

    values = 2 * dout.numel() + 2 * table.numel()
    name = f"stem {batch}x{side}²x{num_codes}x{channels}"
    owner = ops.owner("code_conv2d", codes, table)
    return Work(
        name,
        owner,
        2 * dout.numel() * len(offsets),
        4 * values + 16 * codes.numel(),
        {
            "ours": lambda: partial(step, ops.OPERATORS["code_conv2d"]),
            "reference": lambda: partial(step, code_conv2d_reference),
            "reference_compiled": lambda: partial(step, torch.compile(code_conv2d_reference)),
            "onehot": lambda: one_hot,
        },
    )


def draw(batch: int, num_codes: int, top_k: int, top_p: float) -> Work:
    logits = torch.randn(batch, num_codes, device="cuda")
    noise = ops.gumbel_noise(
        torch.arange(batch, device="cuda"), torch.zeros(1, device="cuda").long(), num_codes
    )[:, 0]
    arguments = (logits, None, noise, None, 0.9, top_k, top_p, 1.0, True)
    operator = ops.OPERATORS["draw_codes"]
    name = f"draw {batch}x{num_codes} k={top_k} p={top_p}"
    return Work(
        name,
        operator.owner(*arguments),
        10 * logits.numel(),
        8 * logits.numel(),
        {
            "ours": lambda: partial(operator, *arguments),
            "reference": lambda: partial(draw_codes_reference, *arguments),
            "reference_compiled": lambda: partial(torch.compile(draw_codes_reference), *arguments),
        },
    )


def prior_step(name: str, *, tf32: bool) -> Work:
    """A whole training step of stage 2, with cuDNN's TF32 allowed or not."""

    def make(contender: str) -> Run:
        with torch.device("cuda"):
            step = make_step(name, contender)

        def run() -> None:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                step.run()

        return run

    with torch.device("cuda"):
        flops = flops_of(name)
    contenders = {
        "ours": partial(make, "ours"),
        "reference": partial(make, "reference"),
        "reference_compiled": partial(make, "compiled"),
    }
    return Work(
        f"prior_step {name} {'tf32' if tf32 else 'float32'}", "several", flops, 0, contenders
    )


def works() -> list[partial[Work]]:
    """Makers, of which those of the headline figures come first."""
    return [
        partial(search, 524_288, 512, 64),
        partial(quantiser_step, 524_288, 512, 64),
        partial(statistics_of, 524_288, 512, 64),
        partial(search, 65_536, 8192, 256),
        partial(attention, 32, 8, 32, 16, torch.float32),
        partial(attention, 32, 8, 32, 16, torch.bfloat16),
        partial(attention, 4, 8, 64, 64, torch.bfloat16),
        partial(gate, 64, 256, 32),
        partial(convolution, 32, 256, 32, torch.float32),
        partial(convolution, 32, 256, 32, torch.bfloat16),
        partial(stem, 32, 32, 512, 256),
        partial(draw, 64, 512, 0, 1.0),
        partial(draw, 64, 512, 100, 0.95),
        partial(prior_step, "port_top", tf32=False),
        partial(prior_step, "port_top", tf32=True),
    ]
