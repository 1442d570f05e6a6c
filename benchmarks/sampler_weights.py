"""The cost of rounded weights: held-out bits per code and KL of engines cpu_bfloat16 and cpu_int8.

    python benchmarks/sampler_weights.py [--pipeline emoji32]
    python benchmarks/sampler_weights.py --priors prior_top prior_bottom --codes codes

Teacher-forced logits of held-out codes, position by position: bits are the mean of -log2 p(code),
KL is the mean of KL(p of engine cpu || p of the other), nats. For a preset the held-out emoji are
encoded here; else --codes is a folder of `vqvae2-fast extract`.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F

import vqvae2_fast
from vqvae2_fast.data import CodeStore, in_order, load_emoji
from vqvae2_fast.metrics import prior_labels
from vqvae2_fast.sampling import calibrate, teacher_forced_logits

ENGINES = ("cpu", "cpu_bfloat16", "cpu_int8", "cpu_w8a8")


def emoji_codes(vqvae, batch: int, split: str = "held_out", count: int = 2**31):
    """Code maps coarse to fine and labels of the emoji of a split."""
    with torch.no_grad():
        for first, (images, labels) in enumerate(in_order(load_emoji(split), batch)):
            if first * batch >= count:
                return
            yield vqvae.encode(images), labels


def stored_codes(folder: str, batch: int, count: int, split: str = "held_out"):
    store = CodeStore(f"{folder}/{split}")
    for start in range(0, min(count, len(store)), batch):
        yield store.batch(torch.arange(start, min(start + batch, count, len(store))))


def compare(prior, level: int, batches) -> dict[str, tuple[float, float]]:
    """Bits per code and KL in nats of each engine."""
    nats, divergence, codes_seen = dict.fromkeys(ENGINES, 0.0), dict.fromkeys(ENGINES, 0.0), 0
    for maps, labels in batches:
        codes = maps[level]
        exact = None
        for engine in ENGINES:
            logits = teacher_forced_logits(
                prior,
                codes,
                condition=maps[:level] or None,
                labels=prior_labels(prior, labels),
                engine=engine,
            )
            log_prob = F.log_softmax(logits.double(), dim=1)
            exact = log_prob if exact is None else exact
            nats[engine] += float(F.nll_loss(log_prob, codes, reduction="sum"))
            divergence[engine] += float((exact.exp() * (exact - log_prob)).sum())
        codes_seen += codes.numel()
    return {
        engine: (nats[engine] / codes_seen / math.log(2), divergence[engine] / codes_seen)
        for engine in ENGINES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default="emoji32")
    parser.add_argument("--priors", nargs="+", help="runs or checkpoints, coarse to fine")
    parser.add_argument("--codes", help="folder of `vqvae2-fast extract`, with --priors")
    parser.add_argument("--count", type=int, default=512, help="the most held-out records to take")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--calibrate", type=int, default=256, help="training records for cpu_w8a8")
    arguments = parser.parse_args()
    pipeline = None if arguments.priors else vqvae2_fast.from_preset(arguments.pipeline)
    priors = pipeline.priors if pipeline else [vqvae2_fast.load(path) for path in arguments.priors]
    print("| prior | engine | bits per code | more | KL, nats |\n|---|---|---|---|---|")
    for level, prior in enumerate(priors):
        if pipeline:
            training = emoji_codes(pipeline.vqvae, arguments.batch, "train", arguments.calibrate)
            batches = emoji_codes(pipeline.vqvae, arguments.batch)
        else:
            training = stored_codes(arguments.codes, arguments.batch, arguments.calibrate, "train")
            batches = stored_codes(arguments.codes, arguments.batch, arguments.count)
        calibrate(
            prior,
            ((maps[level], maps[:level], prior_labels(prior, labels)) for maps, labels in training),
        )
        name = "x".join(map(str, prior.config.size))
        measured = compare(prior.eval(), level, batches)
        base = measured["cpu"][0]
        for engine, (bits, kl) in measured.items():
            print(f"| {name} | {engine} | {bits:.4f} | {bits / base - 1:+.3%} | {kl:.1e} |")


if __name__ == "__main__":
    main()
