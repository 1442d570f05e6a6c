"""The cost of int8 weights and inputs: held-out bits per code and KL of engine cpu_w8a8.

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
from vqvae2_fast.data.groups import labels_of_prior
from vqvae2_fast.metrics import prior_labels
from vqvae2_fast.sampling import calibrate, teacher_forced_logits

ENGINES = ("cpu", "cpu_w8a8")


def emoji_codes(vqvae, batch: int, count: int, split: str = "held_out"):
    """Code maps coarse to fine and labels of the first emoji of a split."""
    with torch.no_grad():
        for images, labels in in_order(load_emoji(split, subcategories=True), batch):
            if count <= 0:
                return
            yield vqvae.encode(images[:count]), labels[:count]
            count -= len(images)


def stored_codes(prior, folder: str, batch: int, count: int, split: str = "held_out"):
    """Code maps coarse to fine, and labels as the prior takes them; the codes may have parts."""
    store = CodeStore(f"{folder}/{split}")
    classes, parts = prior.config.num_classes, prior.config.num_subclasses
    labels_of = labels_of_prior(store.class_names, classes, parts) if classes else None
    for start in range(0, min(count, len(store)), batch):
        rows = torch.arange(start, min(start + batch, count, len(store)))
        maps, labels = store.batch(rows)
        yield maps, labels if labels_of is None else labels_of[labels]


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
    if bool(arguments.priors) != bool(arguments.codes):
        parser.error("--priors and --codes: expected both, or neither for a preset")
    pipeline = None if arguments.priors else vqvae2_fast.from_preset(arguments.pipeline)
    priors = pipeline.priors if pipeline else [vqvae2_fast.load(path) for path in arguments.priors]
    print("| prior | engine | bits per code | more | KL, nats |\n|---|---|---|---|---|")
    for level, prior in enumerate(priors):
        if pipeline:
            training = emoji_codes(pipeline.vqvae, arguments.batch, arguments.calibrate, "train")
            batches = emoji_codes(pipeline.vqvae, arguments.batch, arguments.count)
        else:
            training = stored_codes(
                prior, arguments.codes, arguments.batch, arguments.calibrate, "train"
            )
            batches = stored_codes(prior, arguments.codes, arguments.batch, arguments.count)
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
