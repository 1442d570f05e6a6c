"""Times work on large images when freed memory is kept and when it is returned to the system.

    python benchmarks/freed_memory.py [--rounds 5] [--threads 2]

`vqvae2_fast.training.keep_freed_memory` says what is kept and why. In each round a process with it
and one without take turns; each makes two untimed calls and then five. Printed are the medians, the
ratio of both with the 20th and 80th percentile of the ratio within a round, the page faults of a
call, and the peak memory of the processes.
"""

from __future__ import annotations

import argparse
import resource
import time
from statistics import median
from typing import TYPE_CHECKING

import torch
from shared import measure

import vqvae2_fast as vq2
from vqvae2_fast.presets import preset
from vqvae2_fast.training import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    Work = Callable[[], object]

UNTIMED, TIMED = 2, 5  # calls of a process


def images_of(name: str, batch: int) -> torch.Tensor:
    config = preset(name).vqvae
    images = torch.rand(batch, config.image_channels, *config.image_size) * 2 - 1
    return images.contiguous(memory_format=torch.channels_last)


def vqvae_step(name: str, batch: int) -> Work:
    model = vq2.VQVAE2(preset(name).vqvae).to(memory_format=torch.channels_last).train()
    images = images_of(name, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(images, model(images)).backward()
        optimizer.step()
        model.update_codebooks_()

    return step


def prior_step(name: str, batch: int) -> Work:
    config = preset(name).priors[-1]
    model = vq2.PixelSNAIL(config).train()
    codes, *conditions = (
        torch.randint(config.num_embeddings, (batch, *size))
        for size in (config.size, *config.condition_sizes)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(codes, *conditions).backward()
        optimizer.step()

    return step


def encoding(name: str, batch: int) -> Work:
    model, images = vq2.VQVAE2(preset(name).vqvae).eval(), images_of(name, batch)
    return torch.inference_mode()(lambda: model.encode(images))


def decoding(name: str, batch: int) -> Work:
    model = vq2.VQVAE2(preset(name).vqvae).eval()
    with torch.inference_mode():
        codes = model.encode(images_of(name, batch))
    return torch.inference_mode()(lambda: model.decode(codes))


WORKS: dict[str, tuple[Callable[[str, int], Work], str, int]] = {
    "step of the VQ-VAE": (vqvae_step, "photos64", 32),
    "step of the VQ-VAE, 128": (vqvae_step, "photos128", 32),
    "step of the VQ-VAE, 256": (vqvae_step, "imagenet256", 8),
    "step of the bottom prior, 256": (prior_step, "photos256", 4),
    "encoding, 256": (encoding, "imagenet256", 8),
    "decoding, 256": (decoding, "imagenet256", 8),
}


def time_calls(work: Work) -> None:
    """Prints the seconds and page faults of a call, and the peak of memory in MiB."""
    for _ in range(UNTIMED):
        work()
    seconds = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMED):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(median(seconds), (usage.ru_minflt - before) / TIMED, usage.ru_maxrss / 1024)


def in_a_process(what: str, threads: int, *, keep: bool) -> list[float]:
    """What `time_calls` prints."""
    options = ["--work", what, "--threads", str(threads), *(["--keep"] if keep else [])]
    return measure.numbers_printed(__file__, *options)


def main() -> None:
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = measure.parse(parser)
    if options.work:
        if options.keep:
            keep_freed_memory()
        make, name, batch = WORKS[options.work]
        time_calls(make(name, batch))
        return
    print(f"{measure.machine()}, {options.rounds} rounds")
    for what, (_, name, batch) in WORKS.items():
        rounds = [
            [in_a_process(what, options.threads, keep=keep) for keep in (False, True)]
            for _ in range(options.rounds)
        ]
        (returned, faults, peak), (kept, kept_faults, kept_peak) = (
            zip(*of_setting, strict=True) for of_setting in zip(*rounds, strict=True)
        )
        middle, low, high = measure.ratio(list(returned), list(kept))
        print(
            f"{what} ({name}, batch {batch}): {median(returned) * 1e3:.0f} -> "
            f"{median(kept) * 1e3:.0f} ms, {middle:.2f}x ({low:.2f}-{high:.2f}); page faults "
            f"{median(faults):,.0f} -> {median(kept_faults):,.0f}; at most {max(peak):.0f} -> "
            f"{max(kept_peak):.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
