"""Measures block sizes of the Triton kernels on this GPU and rewrites its rows of the table.

    python benchmarks/tune_triton.py --only nearest

For each kernel the configurations near the one in use run in turns. The fastest becomes the row of
this architecture in `vqvae2_fast/ops/triton_configurations.json` if it was the faster one in four
of five rounds. Check it with `build_tools/compile_triton.py` and the tests before it is committed.
No user's call tunes anything.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gpu import clock
from shared import measure

from vqvae2_fast import ops
from vqvae2_fast.ops import _triton
from vqvae2_fast.ops.causal_conv2d.op import CAUSAL_CONV2D_FUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TABLE = Path(__file__).parents[1] / "vqvae2_fast/ops/triton_configurations.json"
# Not varied: they change the algorithm or belong to wide vectors.
FIXED = (
    *("SEGMENT", "MAX_D", "CHUNK_D", "PROGRAMS", "MIN_POSITIONS", "SAMPLE"),
    *("WIDE_BLOCK_N", "WIDE_BLOCK_K", "WIDE_num_warps", "WIDE_maxnreg", "maxnreg"),
)


def neighbours(config: dict[str, int]) -> Iterator[dict[str, int]]:
    """Half and double of every block size and number of warps, and one stage more or less."""
    choices = []
    for name, value in config.items():
        if name in FIXED:
            choices.append([value])
        elif name == "num_stages":
            choices.append(sorted({max(1, value - 1), value, value + 1}))
        else:
            choices.append([value // 2, value, 2 * value])
    for values in itertools.product(*choices):
        candidate = dict(zip(config, values, strict=True))
        if candidate.get("EXACT_D", 0) > candidate.get("LOOP_D", 0):
            continue  # the launcher of `nearest_code` would take LOOP_D for both
        blocks = [v for k, v in candidate.items() if k in ("BLOCK_M", "BLOCK_N", "BLOCK_K")]
        if all(v >= 16 for v in blocks) and 1 <= candidate.get("num_warps", 4) <= 16:
            yield candidate


def calls() -> dict[str, Callable[[], object]]:
    """A call that runs each kernel at the sizes of the benchmarks."""
    z, codebook = torch.randn(524_288, 64, device="cuda"), torch.randn(512, 64, device="cuda")
    indices = torch.randint(512, (len(z),), device="cuda")
    h, x = torch.randn(64, 512, 32, 32, device="cuda"), torch.randn(64, 256, 32, 32, device="cuda")
    seed, number = torch.tensor(1, device="cuda"), torch.arange(256, device="cuda")
    found = {
        "nearest_code_centre": partial(ops.nearest_code, z[:64], codebook),
        "nearest_code_screen": partial(ops.nearest_code, z, codebook),
        "nearest_code_open": partial(ops.nearest_code, z, codebook),
        "code_segments": partial(ops.code_statistics, z, indices, 512),
        "gated_residual": partial(ops.gated_residual, h, x),
        "dropout_mask": partial(ops.dropout_mask, seed, 64, 1024, 1024, 0.1),
        "gumbel_noise": partial(ops.gumbel_noise, number, number, 512),
    }
    codes = indices[: 32 * 1024].view(32, 32, 32)
    table = torch.randn(33, 512, 256, device="cuda", requires_grad=True)
    offsets = [(row, column) for row in range(-3, 1) for column in range(-4, 5)][:33]
    dstem = torch.randn(32, 256, 32, 32, device="cuda").contiguous(
        memory_format=torch.channels_last
    )

    def stem() -> tuple[torch.Tensor, ...]:
        out = ops.code_conv2d(codes, table, offsets)
        return out, *torch.autograd.grad(out, table, dstem)

    found["code_conv2d_fwd"] = found["code_conv2d_bwd"] = stem
    for suffix, dtype in (("", torch.float32), ("_half", torch.bfloat16)):
        x = torch.randn(32, 256, 32, 32, device="cuda", dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(512, 256, 5, 5, device="cuda", dtype=dtype, requires_grad=True)

        def convolve(x=x, weight=weight) -> tuple[torch.Tensor, ...]:
            out = CAUSAL_CONV2D_FUSED.kernel(x, weight, None, "exclude")
            return out, *torch.autograd.grad(out, (x, weight), out.detach())

        found[f"causal_conv2d_fwd{suffix}"] = convolve
        found[f"causal_conv2d_bwd_dweight{suffix}"] = convolve
    for suffix, width, dtype in (("", 16, torch.bfloat16), ("_wide", 128, torch.bfloat16)):
        q, k, v = (
            torch.randn(8, 8, 1024, width, device="cuda", dtype=dtype, requires_grad=True)
            for _ in range(3)
        )

        def step(q=q, k=k, v=v) -> tuple[torch.Tensor, ...]:
            out = ops.causal_attention(q, k, v, 0.1, "logits", seed)
            return out, *torch.autograd.grad(out.sum(), (q, k, v))

        for kernel in ("fwd", "bwd_dkdv", "bwd_dq"):
            found[f"causal_attention_{kernel}{suffix}"] = step
    return found


def use(kernel: str, arch: str, config: dict[str, int] | None) -> None:
    """Puts this row into the table of this process; None: takes it out."""
    row = _triton._CONFIGURATIONS[kernel]
    if row.get(arch) is config:
        return
    if config is None:
        del row[arch]
    else:
        row[arch] = config
    _triton._configuration.cache_clear()


def agree(found: object, expected: object) -> bool:
    """Whether results of a call are the same but for the order of sums.

    Integers have to be equal, and floats within 1 % of the largest: a wrong kernel is further off.
    """
    if not isinstance(found, torch.Tensor) or not isinstance(expected, torch.Tensor):
        is_tuple = isinstance(found, tuple) and isinstance(expected, tuple)
        return found == expected if not is_tuple else all(map(agree, found, expected))
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    return bool((found - expected).abs().max() <= 0.01 * expected.abs().max())


def tune(kernel: str, call: Callable[[], object], arch: str, rounds: int) -> dict[str, int]:
    """The configuration that is in use from then on: the fastest, or the one before if the fastest
    was not faster in four of five rounds. Its results are those of the one before, if that runs."""
    before = _triton._CONFIGURATIONS[kernel].get(arch)
    start = _triton._configuration(kernel, arch)  # of another architecture if this one has no row
    runs, configs = {}, {}
    expected: object = None
    for config in [start, *(each for each in neighbours(start) if each != start)]:

        def run(config: dict[str, int] = config) -> object:
            use(kernel, arch, config)
            return call()

        name = str(config)
        try:
            result = run()  # compiles it
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"  {name}: {str(error).splitlines()[0][:100]}")
            continue
        if config is start:
            expected = result
        elif expected is not None and not agree(result, expected):
            print(f"  {name}: another result than the row in use")
            continue
        runs[name], configs[name] = run, config
    seconds = measure.interleave(runs, rounds, clock)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"  {name}: {median * 1e3:.4f} ms", flush=True)
    best = min(medians, key=medians.__getitem__, default=str(start))
    if str(start) in runs:
        middle, low, high = measure.ratio(seconds[str(start)], seconds[best])
        print(f"  the one in use takes {middle:.3f}x the fastest ({low:.3f}-{high:.3f})")
        if low <= 1:
            best = str(start)
    use(kernel, arch, before if best == str(start) else configs[best])
    return _triton._configuration(kernel, arch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the kernels' names")
    parser.add_argument("--rounds", type=measure.count, default=7)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/tune_triton.py: no CUDA device.")
    # Convolutions are tuned in the form in which Triton owns them: three TF32 products each.
    torch.backends.cudnn.allow_tf32 = False
    arch = _triton.architecture(torch.device("cuda"))
    for kernel, call in calls().items():
        if options.only in kernel:
            print(f"{kernel}, {arch}")
            print(f"  -> {tune(kernel, call, arch, options.rounds)}")
    lines = [
        f"  {json.dumps(kernel)}: {{\n"
        + ",\n".join(f"    {json.dumps(a)}: {json.dumps(c)}" for a, c in row.items())
        + "\n  }"
        for kernel, row in _triton._CONFIGURATIONS.items()
    ]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
