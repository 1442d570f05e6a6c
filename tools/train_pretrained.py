"""Make a pretrained pipeline that comes with the package, by commands that anyone can run.

    python tools/train_pretrained.py emoji32 --out vqvae2_fast/pretrained/emoji32
    python tools/train_pretrained.py avatars64 --out vqvae2_fast/pretrained/avatars64
    python tools/train_pretrained.py fashion28 --out fashion28

`--list` prints the commands. Interrupted, the same command continues: finished parts are not made
again. A part that other commands made is refused; one without a record of its commands, made by
hand and copied to RUNS, is taken as it is. Leaves the weights, rounded, card.json with the held-out
measures, and RUNS/samples.png. avatars64 needs the extra `avatars`.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vqvae2_fast import VQVAE2, Pipeline, PixelSNAIL, load, sample_images, save
from vqvae2_fast.checkpoints.checkpoint import class_names
from vqvae2_fast.cli import main as vqvae2_fast
from vqvae2_fast.console import Progress
from vqvae2_fast.data.groups import group_names, spread_over_groups
from vqvae2_fast.data.images import spread_evenly
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.files.durable import write_file
from vqvae2_fast.metrics import evaluate_pipeline
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.prior import without_variants
from vqvae2_fast.report import sample_grid

RESULT = "result.json"  # in the folder of a part that is finished
MADE_BY = "made_by.json"  # beside it: the commands of the part and of those that it reads
READS = {
    "vqvae": (),
    "codes": ("vqvae",),
    "prior_top": ("vqvae", "codes"),
    "prior_bottom": ("vqvae", "codes"),
    "decoder": ("vqvae",),
}
MEASURED = 2000  # held-out images at most
SHOWN = 12  # samples of a group of classes in the picture
_FLUENT = "MIT, as the emoji they are trained on (Microsoft Fluent Emoji)"


@dataclass(frozen=True)
class Recipe:
    """How a pipeline is made.

    Args:
        data: What `--data` names by default.
        cache: Whether images are kept in RUNS/images, since it takes long to make them.
        text, licence: For the card.
        vqvae, extract, top, bottom: Options of the commands beside data and folders.
        decoder: Those of `finetune-decoder`, or None for the decoder of stage 1.
        sampling: The recommended settings, found by `vqvae2-fast tune` or by looking.
        samples: What plain samples are like, in words and figures, for the card.
        dtype: Of the packaged weights.
    """

    data: str
    text: str
    licence: str
    vqvae: str
    extract: str
    top: str
    bottom: str
    decoder: str | None
    sampling: dict[str, float | tuple[float, ...]]
    samples: str
    dtype: torch.dtype = torch.bfloat16
    cache: bool = False

    def commands(self, name: str, data: str, runs: Path) -> dict[str, list[str]]:
        """The commands in their order, by the folder that each fills."""
        images = ["--data", data, *(["--cache", str(runs / "images")] if self.cache else [])]
        made: dict[str, str] = {
            "vqvae": f"train-vqvae --preset {name} {self.vqvae}",
            "codes": f"extract {self.extract}",
            "prior_top": f"train-prior --preset {name} --level top {self.top}",
            "prior_bottom": f"train-prior --preset {name} --level bottom {self.bottom}",
        }
        if self.decoder is not None:
            made["decoder"] = f"finetune-decoder {self.decoder}"
        given = {
            "vqvae": images,
            "codes": ["--vqvae", str(runs / "vqvae"), *images],
            "prior_top": ["--codes", str(runs / "codes")],
            "prior_bottom": ["--codes", str(runs / "codes")],
            "decoder": ["--vqvae", str(runs / "vqvae"), *images],
        }
        return {
            folder: [*shlex.split(text), *given[folder], "--out", str(runs / folder)]
            for folder, text in made.items()
        }


_LONG = "--train.average-decay 0.998 --train.weight-decay 0.02"
_NO_DROPOUT = "--model.dropout 0 --model.attention-dropout 0"
_SELDOM = "--train.validate-items 1000"
_MUON = "--train.optimizer muon --train.batch-size 64 --train.precision float32"
RECIPES = {
    "emoji32": Recipe(
        data="emoji:subcategories",
        text="2,819 emoji of 32x32 pixels in 96 classes, mirrored, shifted, zoomed and recoloured; "
        "measured on {count} others",
        licence=_FLUENT,
        vqvae="--flip --train.steps 1000 --train.validate-every 100 --train.save-every 250",
        extract="--flip --copies 8 --shift 1 --zoom 0.05 --colour 0.15",
        # Validated only at the end, so that the last weights are packaged.
        top="--tell-variants --model.dropout 0.15 --model.attention-dropout 0 "
        f"--train.learning-rate 2e-2 --train.steps 4000 {_LONG} --train.validate-every 4000 "
        "--train.save-every 250",
        bottom=f"{_NO_DROPOUT} --train.learning-rate 2e-2 --train.steps 5000 {_LONG} "
        "--train.validate-every 5000 --train.save-every 250",
        decoder="--flip --adversary.channels 32 --adversary.weight 0.3 --train.steps 900 "
        "--train.batch-size 8 --train.average-decay 0.99",
        sampling={"temperature": (0.8, 0.75), "guidance_scale": (2.0, 1.0)},
        samples="at the recommended settings smileys, buttons, hands and some people and animals "
        "can be recognised; most food, tools and buildings cannot. KD-EfficientNetLite0 of 1,000 "
        "plain samples 0.256, at the recommended settings 0.128",
    ),
    "avatars64": Recipe(
        data="avatars:count=7000",
        cache=True,
        text="101,125 avatars of 64x64 pixels in sixteen styles of DiceBear; measured on {count:,} "
        "with pairs of parts that none of these has",
        licence="CC0 1.0, as the styles they are trained on",
        vqvae="--train.optimizer muon --train.learning-rate 5e-3 --train.steps 5000 "
        f"{_SELDOM} --train.validate-every 1000 --train.save-every 250",
        extract="",
        top=f"--model.channels 96 --model.residual-channels 96 {_NO_DROPOUT} "
        f"--train.optimizer muon --train.learning-rate 2e-2 --train.steps 5000 {_LONG} "
        f"{_SELDOM} --train.validate-every 1000 --train.save-every 250",
        bottom=f"--model.channels 96 --model.residual-channels 96 --model.attention {_NO_DROPOUT} "
        f"--train.optimizer muon --train.learning-rate 2e-2 --train.steps 3500 {_LONG} "
        f"{_SELDOM} --train.validate-every 1000 --train.save-every 250",
        decoder="--adversary.channels 32 --adversary.weight 0.3 --train.steps 900 "
        f"--train.batch-size 8 --train.average-decay 0.99 {_SELDOM}",
        sampling={"temperature": (0.95, 0.8), "guidance_scale": (1.5, 1.0)},
        samples="the style of each can be named; of 130 figures in thirteen styles 75 to 99 have "
        "eyes and a mouth where they belong, 90 to 110 at the recommended settings. "
        "KD-EfficientNetLite0 of 2,000 plain samples 0.197",
        dtype=torch.int8,
    ),
    "fashion28": Recipe(
        data="fashion",
        text="60,000 images of Fashion-MNIST; measured on {count:,} others",
        licence="MIT, as Fashion-MNIST (Zalando SE)",
        vqvae="--model.num-embeddings 160 --model.hidden-channels 64 --model.residual-channels 32 "
        f"--model.num-residual-blocks 4 --class-head.weight 0.002 {_MUON} "
        "--train.learning-rate 5e-3 --train.steps 4000",
        extract="--subclasses 128",
        top=f"--parts --model.channels 96 --model.residual-channels 96 {_NO_DROPOUT} {_MUON} "
        f"--train.learning-rate 2e-2 --train.steps 10000 {_LONG}",
        # The bottom prior gains nothing from parts: the top codes tell it the same.
        bottom=f"--groups --model.attention {_NO_DROPOUT} {_MUON} --train.learning-rate 2e-2 "
        f"--train.steps 7000 {_LONG}",
        # The class head takes 0.5 dB, and the decoder alone regains 0.1.
        decoder=f"--lpips-weight 0 --adversary.weight 0 {_MUON} --train.learning-rate 1e-3 "
        "--train.steps 1500 --train.average-decay 0.995",
        sampling={"temperature": (0.97, 1.0), "guidance_scale": (1.25, 2.0)},
        samples="nearly all read as their class; prints are noise and some straps do not meet. "
        "FD-classifier of 10,000 plain samples 0.13 (real images 0.01); a classifier trained on "
        "them is right for 86.0 % of real held-out images (88.5 % if it is trained on real ones)",
        dtype=torch.int8,
    ),
}


def as_typed(commands: dict[str, list[str]]) -> list[str]:
    return [shlex.join(["vqvae2-fast", *command]) for command in commands.values()]


def makers(commands: dict[str, list[str]], folder: str) -> list[str]:
    """The commands that a part comes from: those of the parts that it reads, and its own."""
    return as_typed({name: commands[name] for name in (*READS[folder], folder)})


def make_parts(recipe: Recipe, name: str, data: str, runs: Path) -> None:
    """Run the commands whose parts are not there, and keep with each part what made it.

    Raises:
        SystemExit: A command failed, or a part is there that other commands made. The card would
            show this recipe's.
    """
    # The folders of their defaults: runs that were moved stay what they are.
    named = recipe.commands(name, data, Path("runs") / name)
    others = []
    for folder in named:
        if (runs / folder / RESULT).exists():
            record = runs / folder / MADE_BY
            if not record.exists():
                print(f"{runs / folder} has no {MADE_BY}: taken as made by the recipe's commands")
            elif json.loads(record.read_text(encoding="utf-8")) != makers(named, folder):
                others.append(runs / folder)
    if others:
        raise SystemExit(
            f"not made by the commands that {name} has now, with --data {data}: "
            f"{', '.join(map(str, others))}. {others[0] / MADE_BY} says what made it, and --list "
            "what would make it now. Delete these folders to make them again, or name others with "
            f"--runs. If only the images were moved, delete each {MADE_BY}."
        )
    for folder, command in recipe.commands(name, data, runs).items():
        if not (runs / folder / RESULT).exists():
            if vqvae2_fast([*command, "--resume"]):
                raise SystemExit(f"stopped in {runs / folder}; the same command continues")
            made_by = json.dumps(makers(named, folder), indent=2) + "\n"
            write_file(runs / folder / MADE_BY, made_by.encode())


def write_card(recipe: Recipe, out: Path, name: str, data: DataOptions) -> None:
    """card.json: where the weights come from, and the measures of the packaged weights.

    It shows the commands with the folders of their defaults, wherever they ran.
    """
    commands = as_typed(recipe.commands(name, recipe.data, Path("runs") / name))
    vqvae = load(out / "vqvae", expect=VQVAE2)
    config = vqvae.config
    images = open_images(data, "held_out", config.image_channels, config.image_size, Progress())
    priors = [load(out / f"prior_{level}", expect=PixelSNAIL) for level in level_names(2)]
    shown = spread_evenly(images, MEASURED)
    metrics = evaluate_pipeline(vqvae, priors, shown, codec_images=300).as_json()
    metrics.pop("curves", None)  # of WebP and the like, at all their rates
    card = {
        "licence": recipe.licence,
        "data": recipe.text.format(count=len(shown)),
        "command": f"python tools/train_pretrained.py {name}, which runs: " + "; ".join(commands),
        "metrics": metrics,
        "sampling": recipe.sampling,
        "samples": recipe.samples,
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--data", help="images, as for `vqvae2-fast train-vqvae`")
    parser.add_argument("--runs", type=Path, help="runs/NAME by default")
    parser.add_argument("--out", type=Path, help="where the pipeline goes")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    options = parser.parse_args()
    name, recipe = options.name, RECIPES[options.name]
    data, runs = options.data or recipe.data, options.runs or Path("runs") / name
    if options.list:
        print("\n".join(as_typed(recipe.commands(name, data, runs))))
        return
    if options.out is None:
        parser.error("--out: name the folder for the pipeline")
    make_parts(recipe, name, data, runs)
    vqvae = load(runs / ("vqvae" if recipe.decoder is None else "decoder"), expect=VQVAE2)
    trained = [load(runs / f"prior_{level}", expect=PixelSNAIL) for level in level_names(2)]
    priors = [without_variants(prior) for prior in trained]
    classes = class_names(runs / "prior_top")
    save(Pipeline(vqvae, priors), options.out, class_names=classes, dtype=recipe.dtype)
    write_card(
        recipe, options.out, name, DataOptions(data, runs / "images" if recipe.cache else None)
    )
    pipeline = replace(load(options.out, expect=Pipeline), recommended=recipe.sampling)
    groups = group_names(classes)
    labels = torch.tensor(spread_over_groups(classes, SHOWN)).flatten()
    rows = torch.arange(len(groups)).repeat_interleave(SHOWN)
    images = sample_images(pipeline, len(labels), labels=labels, **recipe.sampling)
    sample_grid(images, rows.tolist(), groups, title=f"Pretrained {name}").save(
        runs / "samples.png"
    )
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
