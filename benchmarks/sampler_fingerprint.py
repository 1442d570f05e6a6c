"""The cost of noticing that weights have changed, compared with a draw from the port's two priors.

    python benchmarks/sampler_fingerprint.py [--threads 2] [--rounds 3]

The fingerprint is taken before the draw of each level, so its time per image is that of both
priors' weights, 699 MB in float32. It times, in turns, one image's codes by engine `cpu`, the
fingerprint, `torch.sum` over the same tensors (about the time of reading them), and the hash in
PyTorch operators that is used where the compiled one is not. Prints medians with their range, and
shares of the draw's median without a spread.
"""

from __future__ import annotations

import statistics
import time

from sampler import PRIORS, prepared
from shared import measure

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.engines.cpu import draw_cpu, packed_plan
from vqvae2_fast.sampling.fingerprint import fingerprint


def in_pytorch(tensors) -> None:
    module, _native.module = _native.module, None
    try:
        fingerprint(tensors)
    finally:
        _native.module = module


def main() -> None:
    arguments = measure.parse(measure.parser(__doc__, rounds=3))
    print(measure.machine())
    image: dict[str, float] = {}
    for name, config in PRIORS.items():
        prior, plan, request = prepared(config, 1)
        weights = [*prior.parameters(), *prior.buffers()]
        packed = packed_plan(plan)
        draw_cpu(packed, request)
        contenders = {
            "draw": lambda packed=packed, request=request: draw_cpu(packed, request),
            "fingerprint": lambda weights=weights: fingerprint(weights),
            "torch.sum": lambda weights=weights: [weight.detach().sum() for weight in weights],
            "in PyTorch": lambda weights=weights: in_pytorch(weights),
        }
        times: dict[str, list[float]] = {contender: [] for contender in contenders}
        for _ in range(arguments.rounds):
            for contender, function in contenders.items():
                # A draw takes seconds and the others milliseconds, so they run several times per
                # draw.
                for _ in range(1 if contender == "draw" else 5):
                    start = time.perf_counter()
                    function()
                    times[contender].append(time.perf_counter() - start)
        for contender, own in times.items():
            median = statistics.median(own)
            image[contender] = image.get(contender, 0.0) + median
            print(
                f"{name} {contender}: {1e3 * median:.1f} ms ({1e3 * min(own):.1f} to "
                f"{1e3 * max(own):.1f})"
            )
    for contender, seconds in image.items():
        share = seconds / image["draw"]
        print(f"an image, {contender}: {1e3 * seconds:.1f} ms, {share:.2%} of the draw")


if __name__ == "__main__":
    main()
