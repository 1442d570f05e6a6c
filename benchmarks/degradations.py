"""Which measures see which damage: noise, blur, missing classes and mixed classes.

    vqvae2-fast train-classifier --data fashion --image-size 28 28 --image-channels 1 --out RUN
    python benchmarks/degradations.py --classifier RUN --out docs/reports/degradations.json

A measure sees a damage if at both strengths its 95 % interval is disjoint from that of undamaged
images, and if the strong damage moves it further. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from vqvae2_fast import load
from vqvae2_fast.data import load_fashion_mnist, to_float
from vqvae2_fast.metrics import compare_sets, extract_features, open_features

if TYPE_CHECKING:
    from torch import Tensor

_FASHION = "/usr/share/datasets/fashion-mnist"
_BATCH = 100


def noise(images: Tensor, labels: Tensor, strength: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (images + strength * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def blur(images: Tensor, labels: Tensor, strength: float) -> Tensor:
    """A Gaussian with a standard deviation of `strength` pixels."""
    offsets = torch.arange(-6, 7).float()
    weights = torch.exp(-offsets.square() / (2 * strength**2))
    weights = weights / weights.sum()
    channels = images.shape[1]
    window = torch.outer(weights, weights).expand(channels, 1, 13, 13)
    return F.conv2d(F.pad(images, (6,) * 4, mode="reflect"), window, groups=channels)


def drop_modes(images: Tensor, labels: Tensor, strength: float) -> Tensor:
    """The last share of the classes is missing; the other images repeat to fill the set."""
    kept = (labels < round((1 - strength) * (int(labels.max()) + 1))).nonzero().flatten()
    return images[kept.repeat(len(images) // len(kept) + 1)[: len(images)]]


def mix_classes(images: Tensor, labels: Tensor, strength: float) -> Tensor:
    """A share of the images becomes the mean of two images of different classes."""
    order = labels.argsort(stable=True).roll(len(labels) // 3)
    partner = torch.empty_like(order)
    partner[labels.argsort(stable=True)] = order
    mixed = (torch.arange(len(images)) * 7919 % len(images)) < strength * len(images)
    mixed &= labels != labels[partner]
    return torch.where(mixed[:, None, None, None], (images + images[partner]) / 2, images)


DAMAGES = {
    "noise": (noise, (0.1, 0.4)),
    "blur": (blur, (0.6, 1.5)),
    "mode dropping": (drop_modes, (0.3, 0.6)),
    "class mixing": (mix_classes, (0.3, 0.9)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--fashion", default=_FASHION)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.classifier is None:
        extractor = open_features("efficientnet")
    else:
        extractor = open_features("classifier", classifier=load(options.classifier))

    def part(split: str, seed: int) -> tuple[Tensor, Tensor]:
        found = load_fashion_mnist(options.fashion, split)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(found), generator=generator)[: options.images]
        return to_float(found.images[rows]), found.labels[rows]

    reference, (real, labels) = part("train", 0)[0], part("held_out", 1)
    sets = {"floor": real}
    for name, (damage, strengths) in DAMAGES.items():
        for level, strength in zip(("weak", "strong"), strengths, strict=True):
            sets[f"{name}, {level}"] = damage(real, labels, strength)
    with TemporaryDirectory() as folder:

        def features(name: str, images: Tensor):
            batches = ((b, torch.zeros(len(b), dtype=torch.int64)) for b in images.split(_BATCH))
            return extract_features(extractor, batches, len(images), Path(folder) / name)

        base = features("reference", reference)
        found = {name: compare_sets(base, features(name, images)) for name, images in sets.items()}
    print(f"{options.images} images per set, features of {extractor.name}\n")
    measures = list(found["floor"])
    print("| set |" + "".join(f" {m} |" for m in measures))
    print("|---|" + "---|" * len(measures))
    for name, row in found.items():
        cells = (f" {e.value:.4g} [{e.low:.4g}, {e.high:.4g}] |" for e in row.values())
        print(f"| {name} |" + "".join(cells))
    sees = {m: [d for d in DAMAGES if _sees(found, m, d)] for m in measures}
    print()
    for measure, damages in sees.items():
        print(f"{measure} sees: {', '.join(damages) or 'none of them'}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "images": options.images,
            "features": extractor.name,
            "sees": sees,
            "measures": {n: {m: asdict(e) for m, e in row.items()} for n, row in found.items()},
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _sees(found: dict, measure: str, damage: str) -> bool:
    floor = found["floor"][measure]
    weak, strong = (found[f"{damage}, {level}"][measure] for level in ("weak", "strong"))
    further = abs(strong.value - floor.value) > abs(weak.value - floor.value)
    same_side = (strong.value > floor.value) == (weak.value > floor.value)
    return further and same_side and weak.apart_from(floor) and strong.apart_from(floor)


if __name__ == "__main__":
    main()
