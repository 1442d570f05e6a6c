"""Make the pretrained `emoji32` pipeline that comes with the package.

    python tools/train_pretrained.py --runs runs/emoji32 --out vqvae2_fast/pretrained/emoji32

A quarter of an hour on a Zen 4 core; broken off, the same command goes on. The priors train longer
than in the demo, and more dropout keeps them from learning 2,819 images by heart.
Leaves the weights in bfloat16, card.json with the held-out measures, and RUNS/samples.png.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from vqvae2_fast import VQVAE2, Pipeline, PixelSNAIL, load, preset, sample_images, save
from vqvae2_fast.console import Progress
from vqvae2_fast.data import CodeStore, in_order, load_emoji
from vqvae2_fast.metrics import evaluate_pipeline
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.report import sample_grid
from vqvae2_fast.training import TrainConfig, prior_stage, train, vqvae_stage
from vqvae2_fast.training.extraction import Variants, extract_codes
from vqvae2_fast.training.presets import train_preset

PRESET = "emoji32"
# The demo's 1300 steps: 1800 give 28.7 dB for 27.9, but codes that cost a top prior 305 bits and
# more instead of 230, because restarts go on splitting the dense regions.
VQVAE_TRAINING = train_preset(PRESET).vqvae
DROPOUT = 0.2
PRIOR_TRAINING = TrainConfig(
    learning_rate=8e-3,
    warmup_steps=100,
    weight_decay=0.01,
    average_decay=0.995,
    precision="auto",
    validate_every=250,
    save_every=250,
)
PRIOR_STEPS = (1000, 1500)  # top, bottom
CLASS_BALANCE = 0.5
# For the picture and the card: what reads best to the eye.
TEMPERATURE, GUIDANCE_SCALE, SAMPLES_A_CLASS = (0.85, 0.8), (2.0, 2.0), 12


def train_vqvae(runs: Path, progress: Progress) -> VQVAE2:
    train_set, held_out = load_emoji("train"), load_emoji("held_out")
    torch.manual_seed(0)
    stage = vqvae_stage(
        VQVAE2(preset(PRESET).vqvae), train_set, held_out, VQVAE_TRAINING, flip=True
    )
    train(
        stage,
        VQVAE_TRAINING,
        out=runs / "vqvae",
        resume=True,
        progress=progress,
        class_names=train_set.class_names,
    )
    return stage.model


def extract(vqvae: VQVAE2, runs: Path, progress: Progress) -> tuple[CodeStore, CodeStore]:
    """Codes of the training images, mirrored ones too, and of the held-out images."""
    return (
        extract_codes(
            vqvae,
            load_emoji("train"),
            runs / "codes" / "train",
            variants=Variants(flip=True),
            progress=progress,
        ),
        extract_codes(
            vqvae, load_emoji("held_out"), runs / "codes" / "held_out", progress=progress
        ),
    )


def train_prior(
    level: int, name: str, codes: CodeStore, held_out: CodeStore, runs: Path, progress: Progress
) -> PixelSNAIL:
    torch.manual_seed(0)
    prior = PixelSNAIL(replace(preset(PRESET).priors[level], dropout=DROPOUT))
    settings = replace(PRIOR_TRAINING, steps=PRIOR_STEPS[level])
    stage = prior_stage(
        prior,
        codes,
        held_out,
        settings,
        level=level,
        class_balance=CLASS_BALANCE,
        name=f"train prior {name}",
    )
    train(
        stage,
        settings,
        out=runs / f"prior_{name}",
        resume=True,
        progress=progress,
        class_names=codes.class_names,
    )
    return prior


def write_card(out: Path, pipeline: Pipeline, held_out: CodeStore) -> None:
    """card.json: where the weights come from, and what they measure as they are in the package."""
    images = load_emoji("held_out")
    values, _ = evaluate_pipeline(
        pipeline.vqvae,
        pipeline.priors,
        [batch for batch, _ in in_order(images, 128)],
        held_out,
        images.images,
    )
    card = {
        "licence": "MIT, as the emoji they are trained on (Microsoft Fluent Emoji)",
        "data": f"2,819 emoji of 32x32 pixels, mirrored; measured on {len(images)} others",
        "command": "OMP_NUM_THREADS=1 python tools/train_pretrained.py "
        f"--out vqvae2_fast/pretrained/{PRESET}",
        "metrics": values,
        "sampling": {"temperature": TEMPERATURE, "guidance_scale": GUIDANCE_SCALE},
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs") / PRESET)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    progress = Progress()
    vqvae = train_vqvae(options.runs, progress)
    codes, held_out = extract(vqvae, options.runs, progress)
    priors = [
        train_prior(level, name, codes, held_out, options.runs, progress)
        for level, name in enumerate(level_names(2))
    ]
    classes = codes.class_names
    save(Pipeline(vqvae, priors), options.out, class_names=classes, dtype=torch.bfloat16)
    pipeline = load(options.out)
    assert isinstance(pipeline, Pipeline)
    write_card(options.out, pipeline, held_out)
    labels = torch.arange(len(classes)).repeat_interleave(SAMPLES_A_CLASS)
    images = sample_images(
        pipeline,
        len(labels),
        labels=labels,
        temperature=TEMPERATURE,
        guidance_scale=GUIDANCE_SCALE,
    )
    sample_grid(images, labels.tolist(), classes, title=f"Pretrained {PRESET}").save(
        options.runs / "samples.png"
    )
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
