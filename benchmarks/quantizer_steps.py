"""What a step of each quantiser costs next to vector-quantize-pytorch, the import changed.

    python benchmarks/quantizer_steps.py --rounds 5 --threads 2

Both modules have equal weights and take the same vectors, in turns within one process; "train" is
forward, backward and the codebook's update. Prints medians, their ratio, and in brackets the 20th
and 80th percentile of the ratio within a round; with --clock cpu of processor time, for machines
that do other work. The outputs are compared first.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from shared import measure

from vqvae2_fast import MultiScaleVQ
from vqvae2_fast.compat import lucidrains

vector_quantize_pytorch = measure.needed("vector_quantize_pytorch")
CASES = {
    "ResidualVQ 8x1024x128": (
        "ResidualVQ",
        {"dim": 128, "num_quantizers": 8, "codebook_size": 1024},
        (16, 1024, 128),
    ),
    "VectorQuantize 1024x128": (
        "VectorQuantize",
        {"dim": 128, "codebook_size": 1024},
        (16, 1024, 128),
    ),
    "SimVQ 1024x128": ("SimVQ", {"dim": 128, "codebook_size": 1024}, (16, 1024, 128)),
    "FSQ 8,5,5,5": ("FSQ", {"levels": [8, 5, 5, 5]}, (16, 4096, 4)),
    "FSQ 8,5,5,5 of 64": ("FSQ", {"levels": [8, 5, 5, 5], "dim": 64}, (16, 4096, 64)),
    "ResidualFSQ 4 x 8,5,5,3": (
        "ResidualFSQ",
        {"levels": [8, 5, 5, 3], "num_quantizers": 4},
        (16, 4096, 4),
    ),
    "LFQ 2^10": ("LFQ", {"codebook_size": 2**10, "dim": 10}, (4, 1024, 10)),
    "LFQ 2^14": ("LFQ", {"codebook_size": 2**14, "dim": 14}, (2, 512, 14)),
    "HierarchicalVQ of VAR's scales": ("HierarchicalVQ", {"quant_resi": 0.0}, (64, 16, 16, 32)),
    "HierarchicalVQ with phi": ("HierarchicalVQ", {"quant_resi": 0.5}, (64, 16, 16, 32)),
}
VAR = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def pair(
    kind: str, arguments: dict[str, Any], x: torch.Tensor
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The package's module and ours, with equal weights."""
    if kind != "HierarchicalVQ":
        sources = (vector_quantize_pytorch, lucidrains)
        theirs, ours = (getattr(source, kind)(**arguments) for source in sources)
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours
    theirs = vector_quantize_pytorch.HierarchicalVQ(
        dim=32,
        codebook_size=4096,
        scales=VAR,
        channel_first=False,
        accept_image_fmap=True,
        **arguments,
    )
    ratio = arguments["quant_resi"]
    phi = 1 if ratio else 0
    ours = MultiScaleVQ(4096, 32, VAR, num_phi=phi, phi_ratio=ratio, upsample="bilinear")
    ours(x)  # k-means of its own, from which the package's starts as well
    book, other = theirs.vq._codebook, ours.quantizers[0]
    book.initted.fill_(True)
    book.embed.copy_(other.codebook[None])
    book.embed_avg.copy_(other.embed_avg[None])
    book.cluster_size.copy_(other.cluster_size[None])
    for layer in ours.phi:
        layer.load_state_dict(theirs.phi_shared.conv.state_dict())
    return theirs, ours


def codes(results: tuple[Any, ...]) -> torch.Tensor:
    """The indices, of several scales one after another."""
    indices = results[1]
    return torch.cat([i.flatten(1) for i in indices], 1) if isinstance(indices, tuple) else indices


def step(module: torch.nn.Module, x: torch.Tensor, train: bool) -> tuple[torch.Tensor, ...]:
    if not train:
        with torch.no_grad():
            return tuple(module(x))
    leaf = x.clone().requires_grad_()
    results = tuple(module(leaf))
    loss = results[0].square().mean() + (results[2].sum() if len(results) > 2 else 0.0)
    loss.backward()
    return results


def main() -> None:
    parser = measure.parser(__doc__, rounds=5)
    measure.add_clock(parser)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = measure.parse(parser)
    print(f"{measure.machine()}, {options.clock} clock, {options.rounds} rounds")
    for name in options.cases:
        kind, arguments, shape = CASES[name]
        x = torch.randn(shape)
        theirs, ours = pair(kind, arguments, x)
        for train in (False, True):
            for module in (theirs, ours):
                module.train(train)
            # Once before the clock runs, and equal but for near-ties.
            expected, actual = (codes(step(module, x, train)) for module in (theirs, ours))
            share = float((expected == actual).float().mean())
            # In training the package moves a codebook between its scales.
            if share <= 0.999 and not (train and kind == "HierarchicalVQ"):
                raise SystemExit(
                    f"benchmarks/quantizer_steps.py: {name}: only {share:.4%} of the indices are "
                    "equal, so no times are given."
                )
            seconds = measure.interleave(
                {"package": partial(step, theirs, x, train), "here": partial(step, ours, x, train)},
                options.rounds,
                measure.CLOCKS[options.clock],
            )
            package, here = (1e3 * statistics.median(times) for times in seconds.values())
            middle, low, high = measure.ratio(seconds["package"], seconds["here"])
            what = "train" if train else "evaluate"
            print(
                f"{name}, {what}: package {package:.2f} ms, here {here:.2f} ms, "
                f"{middle:.2f} times as fast ({low:.2f}-{high:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
