"""Codebooks of 10^4 to 10^6 codes: which of them stay in use, and what IBQ costs.

    python benchmarks/huge_codebooks.py --data photos32/ --quantizers ema bridge --codes 16384
    python benchmarks/huge_codebooks.py --ibq 4096 16384

The first trains a small convolutional autoencoder of 32×32 images (4×4 pixels a code) with each
quantiser on the same batches of 16 images, and prints a line for each: PSNR of held-out images, the
share of codes that the training images use, perplexity, and the median processor time of a step.
The second takes steps of `IBQ` and of its definition with matrices of N×K, in turns for the times
and in a process each for the peak of memory.
"""

from __future__ import annotations

import math
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from shared import measure
from shared.memory import numbers_of, rise_of
from torch import Tensor, nn

import vqvae2_fast as vq2
from vqvae2_fast.data import batches, in_order
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.modules import VectorQuantizer

D, WIDTH, BATCH, WARMUP = 16, 64, 16, 200
# An encoder's first outputs hardly differ: moving averages and restarts begin after these steps.
EMA = {"update": "step", "quantize_after": 100}


def bridge(num_embeddings: int, seed: int) -> vq2.VQBridge:
    tokens = min(num_embeddings, 1024)
    return vq2.VQBridge(num_embeddings, D, codes_per_token=num_embeddings // tokens, seed=seed)


QUANTIZERS = {
    "ema": lambda k, seed: vq2.VectorQuantizerEMA(k, D, seed=seed, **EMA),
    "simvq": lambda k, seed: vq2.SimVQ(k, D, seed=seed),
    "bridge": bridge,
    "ibq": lambda k, seed: vq2.IBQ(k, D, seed=seed),
    "gradient": lambda k, seed: VectorQuantizer(k, D, seed=seed),
    # 16,384, 65,536 and 262,144 codes.
    "fsq": lambda k, seed: vq2.FSQ(
        {2**14: [8, 8, 8, 8, 4], 2**16: [8, 8, 8, 8, 4, 4], 2**18: [8] * 6}[k], D
    ),
}


class Autoencoder(nn.Module):
    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, WIDTH, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, D, 1),
        )
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            nn.Conv2d(D, WIDTH, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, 3, 4, 2, 1),
        )

    def vectors(self, images: Tensor) -> Tensor:
        return self.encoder(images).permute(0, 2, 3, 1)  # [B, H/4, W/4, D]

    def forward(self, images: Tensor) -> Tensor:
        z_q, _, loss = self.quantizer(self.vectors(images))
        return F.mse_loss(self.decoder(z_q.permute(0, 3, 1, 2)), images) + loss


def learning_rate(step: int, steps: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return 1e-3 * min(1.0, (step + 1) / WARMUP) * (0.99 * cosine + 0.01)


def trained(model: Autoencoder, images: object, steps: int, seed: int) -> float:
    """Train in place; the median processor time of a step in ms."""
    optimizer = torch.optim.Adam(model.parameters())
    times = []
    for step, (batch, _) in zip(range(steps), batches(images, BATCH, seed=seed), strict=False):
        start = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
        if isinstance(model.quantizer, vq2.VectorQuantizerEMA):
            model.quantizer.update_codebook_()
        times.append(time.process_time() - start)
    return statistics.median(times) * 1e3


@torch.no_grad()
def measured(model: Autoencoder, train_set: object, held_out: object) -> str:
    quantizer = model.quantizer
    if isinstance(quantizer, vq2.VQBridge):
        quantizer = quantizer.folded()
    counts = torch.zeros(quantizer.num_embeddings, dtype=torch.int64)
    for batch, _ in in_order(train_set, 64):
        indices = quantizer.encode(model.vectors(batch)).flatten()
        counts += torch.bincount(indices, minlength=len(counts))
    squares, numbers = 0.0, 0
    for batch, _ in in_order(held_out, 64):
        codes = quantizer.lookup(quantizer.encode(model.vectors(batch)))
        decoded = model.decoder(codes.permute(0, 3, 1, 2)).clamp(-1, 1)
        squares += float((decoded - batch).square().sum())
        numbers += batch.numel()
    shares = counts[counts > 0] / counts.sum()
    perplexity = float(torch.exp(-(shares * shares.log()).sum()))
    psnr = 10 * math.log10(4 * numbers / squares)
    used = float((counts > 0).float().mean())
    use = f"{used:.1%} used by {counts.sum():,} vectors, perplexity {perplexity:,.0f}"
    return f"{psnr:.2f} dB, {use}"


def eager_step(quantizer: vq2.IBQ, z: Tensor) -> None:
    """A step of IBQ with all matrices of N×K, as in the authors' code."""
    codes, tau = quantizer.codebook, quantizer.temperature
    logits = z @ codes.t()
    soft = logits.softmax(1)
    hard = torch.zeros_like(logits).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    z_q, rows = (hard - soft.detach() + soft) @ codes, hard @ codes
    loss = F.mse_loss(z_q, z) + F.mse_loss(rows.detach(), z) + 0.25 * F.mse_loss(rows, z.detach())
    if quantizer.entropy_weight:
        sharp, log_sharp = (logits / tau).softmax(1), (logits / tau).log_softmax(1)
        mean = sharp.mean(0)
        entropies = -(sharp * log_sharp).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
        loss = loss + quantizer.entropy_weight * entropies
    (z_q.square().mean() + loss).backward()


def our_step(quantizer: vq2.IBQ, z: Tensor) -> None:
    z_q, _, loss = quantizer(z)
    (z_q.square().mean() + loss).backward()


STEPS = {"eager": eager_step, "here": our_step}


def case_of(vectors: int, codes: int, entropy: float) -> tuple[vq2.IBQ, Tensor]:
    torch.manual_seed(0)
    return vq2.IBQ(codes, D, entropy_weight=entropy), torch.randn(vectors, D, requires_grad=True)


def child(contender: str, vectors: str, codes: str, entropy: str) -> None:
    case = case_of(int(vectors), int(codes), float(entropy))
    STEPS[contender](*case_of(64, 64, float(entropy)))  # what lasts: threads, libraries
    print(rise_of(partial(STEPS[contender], *case)))


def compare_ibq(vectors: int, codes: int, entropy: float, clock: str, rounds: int) -> None:
    quantizer, z = case_of(vectors, codes, entropy)
    seconds = measure.interleave(
        {name: partial(step, quantizer, z) for name, step in STEPS.items()},
        rounds,
        measure.CLOCKS[clock],
    )
    eager, here = (statistics.median(times) for times in seconds.values())
    middle, low, high = measure.ratio(seconds["eager"], seconds["here"])
    peaks = [
        numbers_of(__file__, "--child", name, *map(str, (vectors, codes, entropy)), count=1)[0]
        for name in STEPS
    ]
    print(
        f"IBQ, N {vectors:,}, K {codes:,}, D {D}, entropy_weight {entropy}: "
        f"eager {eager:.2f} s and {peaks[0]:,.0f} MiB, here {here:.2f} s and {peaks[1]:,.0f} MiB: "
        f"{middle:.2f} times as fast ({low:.2f}-{high:.2f}), "
        f"{peaks[1] / peaks[0]:.3f} of the memory",
        flush=True,
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=3, threads=1)
    measure.add_clock(parser)
    parser.add_argument("--data", help="a source of images, as `--data` elsewhere")
    parser.add_argument("--quantizers", nargs="+", default=list(QUANTIZERS), choices=QUANTIZERS)
    parser.add_argument("--codes", nargs="+", type=measure.count, default=[2**14])
    parser.add_argument("--steps", type=measure.count, default=4000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ibq", nargs=2, type=measure.count, metavar=("N", "K"))
    parser.add_argument("--child", nargs=4, help="for the script itself")
    options = measure.parse(parser)
    if options.child:
        child(*options.child)
        return
    print(f"{measure.machine()}, {options.clock} clock")
    if options.ibq:
        for entropy in (0.0, 0.05):
            compare_ibq(*options.ibq, entropy, options.clock, options.rounds)
    if not options.data:
        return
    train_set, held_out = (
        open_images(DataOptions(options.data), split, 3, (32, 32))
        for split in ("train", "held_out")
    )
    for codes in options.codes:
        for name in options.quantizers:
            for seed in options.seeds:
                torch.manual_seed(seed)
                model = Autoencoder(QUANTIZERS[name](codes, seed))
                milliseconds = trained(model, train_set, options.steps, seed)
                result = measured(model.eval(), train_set, held_out)
                print(
                    f"{name}, K {codes:,}, seed {seed}, {options.steps} steps: {result}, "
                    f"{milliseconds:.0f} ms a step",
                    flush=True,
                )


if __name__ == "__main__":
    main()
