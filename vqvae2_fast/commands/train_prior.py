"""`vqvae2-fast train-prior`: stage 2, one level."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from vqvae2_fast.commands.common import Result, write_result
from vqvae2_fast.commands.options import value_of
from vqvae2_fast.commands.plan import Task
from vqvae2_fast.commands.training import TrainingCommand, best_lines
from vqvae2_fast.data import CodeStore, codes_in_order
from vqvae2_fast.data.code_format import MANIFEST, CodeLayout, read_manifest
from vqvae2_fast.data.groups import classes_of_prior
from vqvae2_fast.files.printable import why_no_folder
from vqvae2_fast.metrics import marginal_entropy
from vqvae2_fast.models.configs import PixelSNAILConfig, level_names
from vqvae2_fast.models.prior import PriorConfig, kind_of_prior, make_prior
from vqvae2_fast.presets import preset, presets_with_maps
from vqvae2_fast.report.curves import plot_curves
from vqvae2_fast.runs.origin import check_same_origin, keep_origin
from vqvae2_fast.training import TrainConfig, prior_stage
from vqvae2_fast.training.stage2 import prior_config

__all__ = ["TrainPrior"]

_LEVELS = ("top", "middle", "middle1", "middle2", "bottom")  # of models of one to four levels


@dataclass(kw_only=True)
class TrainPrior(TrainingCommand):
    """Train the prior of one level (stage 2) on extracted codes.

    --preset and --level set the defaults of all --model and --train options. The size, the number
    of codes, the conditioning maps and the number of classes always follow from the codes.
    """

    preset: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = "emoji32"
    """Defaults of the model and of its training; `vqvae2-fast info --presets` lists them. If none
    is named: the preset whose maps have the sizes and the number of codes of --codes."""
    level: str = "top"
    """Which level to model: top, bottom, or middle where there are three (middle1 and middle2 where
    there are four)."""
    codes: Path = Path("runs/codes")
    """Folder that `vqvae2-fast extract` wrote."""
    out: Path | None = None
    """Folder of the run; runs/prior_LEVEL if none is named."""
    unconditional: bool = False
    """Ignore the labels."""
    groups: bool = False
    """The prior's classes are groups of the codes' classes, such as "Coat" of "Coat - 07"."""
    parts: bool = False
    """As --groups, and the classes of a group are its hidden parts: the prior is told the part, and
    `sample` draws one for each image. For codes of `extract --subclasses`."""
    variants: Annotated[bool, tyro.conf.arg(name="tell-variants")] = False
    """Tell the prior whether an image is as it is, mirrored or a changed copy, so that it learns
    from all of them, but draws images that look unaltered. For codes of `extract --flip` or
    `--copies`."""
    label_dropout: float = 0.1
    """Share of labels dropped in training, so that samples can be guided."""
    class_balance: float = 0.0
    """Up to 1: records of a class are seen (size of the largest / its own)^this times as often."""
    model: PriorConfig = field(default_factory=PixelSNAILConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def defaults(cls, arguments: list[str]) -> TrainPrior:
        """The model and training of `--preset` and `--level`."""
        codes = Path(value_of("--codes", arguments, str(cls.codes)))
        name = value_of("--preset", arguments, "") or _preset_of(codes, arguments)
        level = value_of("--level", arguments, cls.level)
        known = preset(name)
        levels = level_names(len(known.priors))
        number, training = levels.index(_settings_level(level, levels)), known.training
        return cls(
            preset=name,
            level=level,
            model=known.priors[number],
            train=training.priors[number],
            class_balance=training.class_balance,
        )

    def run(self) -> Result:
        out = self.out or Path(f"runs/prior_{self.level}")
        ranks, device, progress = self.begin(out, kind_of_prior(self.model))
        of_preset = level_names(len(preset(self.preset).priors))
        settings = _settings_level(self.level, of_preset)
        progress.say(f"settings: those of preset {self.preset}, level {settings}")
        codes, held_out = (_open_codes(self.codes, split) for split in ("train", "held_out"))
        levels = level_names(len(codes.level_sizes))
        if self.level not in levels:
            raise ValueError(
                f"--level: expected one of {', '.join(levels)} of {self.codes}, got {self.level!r}."
            )
        level = levels.index(self.level)
        config = prior_config(
            self.model,
            codes,
            level,
            conditional=not self.unconditional,
            groups=self.groups,
            parts=self.parts,
            variants=self.variants,
        )
        self._check_follows(config, preset(self.preset).priors[of_preset.index(settings)])
        self._check_classes(config, codes)
        if self.resume:
            check_same_origin(out, codes)
        layout = CodeLayout(config.num_embeddings, (*config.condition_sizes, config.size))
        task = Task(
            lambda: make_prior(config),
            lambda prior: prior_stage(
                prior,
                codes,
                held_out,
                self.train,
                level=level,
                label_dropout=self.label_dropout,
                class_balance=self.class_balance,
                name=f"train prior {self.level}",
            ),
            self.train,
            device,
            progress,
            out,
        )
        plan = self.planned(
            ranks,
            task,
            items={"train": len(codes), "held_out": len(held_out)},
            shape=_told(config),
            maps=layout.describe() + " (the last to be modelled)",
        )
        if plan is not None:
            return plan
        ranks.run_on_rank0_and_broadcast(lambda: keep_origin(out, codes))
        classes, hidden = config.num_classes, config.num_subclasses
        names = classes_of_prior(codes.class_names, classes, hidden) if classes else ()
        _, trained = self.fit(ranks, task, names)
        if ranks.rank:
            return Result({})
        maps = (maps[level] for maps, _ in codes_in_order(held_out, self.train.batch_size))
        marginal = marginal_entropy(maps, codes.num_embeddings)
        per_image = config.size[0] * config.size[1]
        plot_curves(
            out / "curves.png",
            priors={self.level: trained.log},
            marginal_bits={self.level: marginal},
        )
        values = {
            "steps": self.train.steps,
            "level": self.level,
            "held_out": trained.metrics,
            "best": trained.best,
            "marginal_bits_per_image": marginal * per_image,
            "run": str(out),
        }
        write_result(out / "result.json", values)
        return Result(
            values,
            [
                f"held out: {trained.metrics['bits_per_image']:.0f} bits per image; "
                f"marginal entropy {marginal * per_image:.0f}",
                *best_lines(trained, out),
                f"run: {out}",
                f"picture: {out / 'curves.png'}",
            ],
        )

    def _check_follows(self, config: PriorConfig, of_preset: PriorConfig) -> None:
        """Raises ValueError for an option that says something else than the codes do."""
        told = ("num_classes", "num_subclasses", "num_variants", "num_words")
        for name in ("size", "num_embeddings", "condition_sizes", *told):
            typed, expected = getattr(self.model, name), getattr(config, name)
            if typed not in (getattr(of_preset, name), expected):
                raise ValueError(
                    f"--model.{name.replace('_', '-')}: expected {expected}, which follows from "
                    f"--codes and the options of classes, got {typed}; leave it out."
                )

    def _check_classes(self, config: PriorConfig, codes: CodeStore) -> None:
        """Raises ValueError for a setting of classes, other than the default, without any."""
        told = self.label_dropout not in (0, TrainPrior.label_dropout)
        if told and not config.num_classes:
            raise ValueError(
                f"--label-dropout: expected a prior that is told classes, got {self.label_dropout} "
                "for one without any; leave it out."
            )
        usual = preset(self.preset).training.class_balance
        if self.class_balance not in (0, usual) and not codes.class_names:
            raise ValueError(
                f"--class-balance: expected codes with classes, got {self.class_balance} and "
                f"{self.codes}, which has none; leave it out."
            )


def _told(config: PriorConfig) -> str:
    """What the prior is told of an image."""
    words = f" and {config.num_words} words" if config.num_words else ""
    return f"codes of {config.num_classes} classes{words}" if config.num_classes else "no classes"


def _settings_level(level: str, of_preset: tuple[str, ...]) -> str:
    """The level of a preset whose settings the prior of a level has.

    It is the same one. A level that the preset lacks has the settings of its last middle level, or
    of its last level if it has none in the middle.
    """
    if level not in _LEVELS:
        raise ValueError(f"--level: expected one of {', '.join(_LEVELS)}, got {level!r}.")
    middles = [name for name in of_preset if name.startswith("middle")]
    return level if level in of_preset else (middles or of_preset)[-1]


def _open_codes(folder: Path, split: str) -> CodeStore:
    """A store to train on. Raises ValueError if it does not exist or is incomplete."""
    path = folder / split
    if not (path / MANIFEST).is_file():
        own = "is a code store itself" if (folder / MANIFEST).is_file() else f"has no {path.name}/"
        what = why_no_folder(folder) or own
        raise ValueError(
            "--codes: expected a folder with the code stores train/ and held_out/, as "
            f"`vqvae2-fast extract` leaves it; {folder} {what}."
        )
    store = CodeStore(path)
    missing = store.manifest.missing()
    if missing:
        raise ValueError(
            f"--codes: {path} lacks {sum(stop - first for first, stop in missing)} of its records; "
            "finish it: vqvae2-fast extract --resume ..."
        )
    return store


def _preset_of(codes: Path, arguments: list[str]) -> str:
    """The preset whose maps are like those of the codes, for a command that names none.

    Of several it is the one with as many classes as the codes have, or the first if their priors
    differ in nothing else. Codes that are like those of no preset have the settings of the default
    one. Codes that are not there are reported when they are opened.

    Raises:
        ValueError: If several presets have such maps and different priors.
    """
    folder = codes / "train"
    if {"--help", "-h"} & set(arguments) or not (folder / MANIFEST).is_file():
        return TrainPrior.preset
    manifest = read_manifest(folder)
    layout, classes = manifest.layout, len(manifest.class_names)
    names = presets_with_maps(layout.num_embeddings, layout.level_sizes)
    alike = [name for name in names if preset(name).priors[0].num_classes == classes]
    names = tuple(alike) or names
    models = {
        tuple(replace(prior, num_classes=0) for prior in preset(name).priors) for name in names
    }
    if len(models) > 1:
        raise ValueError(
            "--preset: expected the name of the preset whose settings the prior is to have; "
            f"{codes} holds {layout.describe()}, and so do {' and '.join(names)}."
        )
    return names[0] if names else TrainPrior.preset
