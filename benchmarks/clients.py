"""Quantisers of other projects next to ours, the import changed: equal steps, and what they cost.

    python benchmarks/clients.py --originals FOLDER --threads 1

FOLDER holds clones of CompVis/taming-transformers and facebookresearch/encodec; diffusers has to
be installed. Both modules take ten training steps of the same vectors, each from the original's
state: codes may differ where two are equally near but for rounding, which is counted, and nowhere
else. Then they are timed in turns within one process: "train" is forward, backward and the
codebook's update, "evaluate" a forward without gradients. --golden DIR writes what
tests/compat/test_clients.py compares with, instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import sys
import types
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from shared import measure
from torch import Tensor, nn

from vqvae2_fast.compat import diffusers, encodec, taming

if TYPE_CHECKING:
    from collections.abc import Iterator

# Arguments, and the shape of the input.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "taming 1,024 x 256": ("taming", {"n_e": 1024, "e_dim": 256, "beta": 0.25}, (8, 256, 16, 16)),
    "taming 16,384 x 256": (
        "taming",
        {"n_e": 16384, "e_dim": 256, "beta": 0.25},
        (8, 256, 16, 16),
    ),
    "diffusers 8,192 x 64": (
        "diffusers",
        {"n_e": 8192, "vq_embed_dim": 64, "beta": 0.25},
        (8, 64, 16, 16),
    ),
    "diffusers 8,192 x 3": (
        "diffusers",
        {"n_e": 8192, "vq_embed_dim": 3, "beta": 0.25},
        (1, 3, 64, 64),
    ),
    "encodec 8 x 1,024 x 128, 4,800 vectors": (
        "encodec",
        {"dimension": 128, "n_q": 8, "bins": 1024, "kmeans_iters": 10},
        (64, 128, 75),
    ),
    "encodec 8 x 1,024 x 128, 75 vectors": (
        "encodec",
        {"dimension": 128, "n_q": 8, "bins": 1024, "kmeans_iters": 10},
        (1, 128, 75),
    ),
    "encodec 32 x 1,024 x 128, 1,200 vectors": (
        "encodec",
        {"dimension": 128, "n_q": 32, "bins": 1024, "kmeans_iters": 10},
        (16, 128, 75),
    ),
}
GOLDEN: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "taming": ("taming", {"n_e": 24, "e_dim": 6, "beta": 0.25}, (2, 6, 4, 5)),
    "taming_repaired": (
        "taming",
        {"n_e": 24, "e_dim": 6, "beta": 0.25, "legacy": False, "sane_index_shape": True},
        (2, 6, 4, 5),
    ),
    "diffusers": ("diffusers", {"n_e": 24, "vq_embed_dim": 3, "beta": 0.25}, (2, 3, 4, 5)),
    "encodec": (
        "encodec",
        {"dimension": 6, "n_q": 3, "bins": 12, "decay": 0.8, "kmeans_iters": 5},
        (2, 6, 20),
    ),
}
STEPS = 10
FRAME_RATE = 75


def originals(folder: Path) -> dict[str, type[nn.Module]]:
    """The originals' classes, without the rest of their packages, which need much else."""
    file = folder / "taming-transformers/taming/modules/vqvae/quantize.py"
    spec = importlib.util.spec_from_file_location("taming_quantize", file)
    assert spec and spec.loader
    quantize = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quantize)
    package = types.ModuleType("encodec")
    package.__path__ = [str(folder / "encodec/encodec")]
    sys.modules["encodec"] = package
    vae = importlib.import_module("diffusers.models.autoencoders.vae")
    return {
        "taming": quantize.VectorQuantizer2,
        "diffusers": vae.VectorQuantizer,
        "encodec": importlib.import_module("encodec.quantization.vq").ResidualVectorQuantizer,
    }


OURS = {
    "taming": taming.VectorQuantizer2,
    "diffusers": diffusers.VectorQuantizer,
    "encodec": encodec.ResidualVectorQuantizer,
}


def results(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantised vectors, loss and codes."""
    if hasattr(module, "vq"):
        result = module(x, FRAME_RATE)
        return result.quantized, result.penalty, result.codes
    z_q, loss, (_, _, indices) = module(x)
    return z_q, loss, indices


def step(module: nn.Module, x: Tensor, train: bool) -> tuple[Tensor, ...]:
    """Results, and in training the gradients of x and of a codebook that has one."""
    if not train:
        with torch.no_grad():
            return results(module, x)
    module.zero_grad()
    leaf = x.clone().requires_grad_()
    z_q, loss, indices = results(module, leaf)
    (z_q.square().mean() + loss).backward()
    assert leaf.grad is not None
    gradients = [leaf.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    return z_q.detach(), loss.detach(), indices, *gradients


def inputs(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    """Vectors in clusters that move, as those of an encoder that learns."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(shape, generator=generator)
    noise = (torch.randn(shape, generator=generator) for _ in range(steps))
    return [centre * (1 + 0.02 * number) + 0.5 * e for number, e in enumerate(noise)]


def lockstep(module: nn.Module, batches: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Take the training steps one by one; SGD moves a codebook that has a gradient."""
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
    for x in batches:
        row = step(module.train(), x, train=True)
        if optimizer is not None:
            optimizer.step()
        yield row


def codebooks(module: nn.Module) -> list[Tensor]:
    """The codebooks in their order, `[K, D]` each, float64 copies."""
    names = ("embedding.weight", "_codebook.embed")
    return [v.double() for k, v in module.state_dict().items() if k.endswith(names)]


def unlike(x: Tensor, books: list[Tensor], theirs: Tensor, ours: Tensor) -> tuple[int, int]:
    """How many vectors got other codes, and how many of these were not near-ties in float64."""
    rows = x.movedim(1, -1).reshape(-1, x.shape[1]).double()  # [N, D]
    other = wrong = 0
    both = zip(books, *(codes.reshape(len(books), -1) for codes in (theirs, ours)), strict=True)
    same = torch.ones(len(rows), dtype=torch.bool)
    for book, a, b in both:
        differ = same & (a != b)
        scale = rows.square().sum(1) + book[a].square().sum(1)
        gap = ((rows - book[b]).square().sum(1) - (rows - book[a]).square().sum(1)).abs()
        other += int(differ.sum())
        wrong += int((differ & (gap > 1e-5 * scale)).sum())
        same &= a == b
        rows = rows - book[a]
    return other, wrong


def compare_steps(pair: dict[str, nn.Module], batches: list[Tensor]) -> str:
    """Take all steps with both, ours each from the original's state, and say what differs."""
    original, here = pair.values()
    steps = lockstep(original, batches), lockstep(here, batches)
    vectors = other = wrong = 0
    errors: list[float] = []
    for number, x in enumerate(batches):
        here.load_state_dict(original.state_dict())
        books = codebooks(original)
        rows = []
        for module in steps:
            torch.manual_seed(number)
            rows.append(next(module))
        if number or not hasattr(original, "vq"):  # encodec's first step begins without codes
            differ, untied = unlike(x, books, rows[0][2], rows[1][2])
            other, wrong = other + differ, wrong + untied
            vectors += x.numel() // x.shape[1]
            if not differ:
                states = zip(*(m.state_dict().values() for m in pair.values()), strict=True)
                errors += [float((b - a).norm() / a.norm().clamp(min=1e-12)) for a, b in states]
    return f"of {vectors:,} vectors {other} got other codes, {wrong} of them without a near-tie" + (
        f"; states within {max(errors):.1e} after steps with equal codes" if errors else ""
    )


def write_golden(theirs: dict[str, type[nn.Module]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (kind, arguments, shape) in GOLDEN.items():
        torch.manual_seed(0)
        module = theirs[kind](**arguments)
        tensors = {f"before.{key}": value.clone() for key, value in module.state_dict().items()}
        batches = inputs(shape, 3)
        torch.manual_seed(1)
        for number, (x, row) in enumerate(zip(batches, lockstep(module, batches), strict=True)):
            names = ("quantized", "loss", "codes", "gradient", "codebook_gradient")
            tensors |= {f"x.{number}": x}
            tensors |= {f"{what}.{number}": value for what, value in zip(names, row, strict=False)}
        tensors["random"] = torch.rand(4)  # how far torch's generator has come
        tensors |= {f"after.{key}": value for key, value in module.state_dict().items()}
        tensors = {key: value.clone().contiguous() for key, value in tensors.items()}
        save_file(tensors, folder / f"{name}.safetensors")


def main() -> None:
    parser = measure.parser(__doc__, rounds=7)
    measure.add_clock(parser)
    parser.add_argument("--originals", type=Path, required=True)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = measure.parse(parser)
    theirs = originals(options.originals)
    if options.golden:
        write_golden(theirs, options.golden)
        return
    print(f"{measure.machine()}, {options.clock} clock, {options.rounds} rounds")
    for name in options.cases:
        kind, arguments, shape = CASES[name]
        torch.manual_seed(0)
        pair = {"original": theirs[kind](**arguments), "here": OURS[kind](**arguments)}
        batches = inputs(shape, STEPS)
        print(f"{name}: {compare_steps(pair, batches)}")
        x = batches[-1]
        for train in (False, True):
            for module in pair.values():
                module.train(train)
            seconds = measure.interleave(
                {key: partial(step, module, x, train) for key, module in pair.items()},
                options.rounds,
                measure.CLOCKS[options.clock],
            )
            before, here = (1e3 * statistics.median(times) for times in seconds.values())
            middle, low, high = measure.ratio(seconds["original"], seconds["here"])
            what = "train" if train else "evaluate"
            print(
                f"{name}, {what}: original {before:.2f} ms, here {here:.2f} ms, "
                f"{middle:.2f} times as fast ({low:.2f}-{high:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
