"""`vqvae2-fast train-prior`: stage 2, one level."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vqvae2_fast.commands.common import Command, Result, write_result
from vqvae2_fast.commands.train_vqvae import check_fresh
from vqvae2_fast.data import CodeDataset
from vqvae2_fast.metrics import marginal_entropy
from vqvae2_fast.models.configs import PixelSNAILConfig, level_names
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.report.curves import plot_curves
from vqvae2_fast.training import TrainConfig, prior_stage, train

__all__ = ["TrainPrior", "prior_config"]


@dataclass(kw_only=True)
class TrainPrior(Command):
    """Train the prior of one level (stage 2) on extracted codes.

    --preset and --level set the defaults of all --model and --train options. The size, the number
    of codes, the conditioning maps and the number of classes always follow from the codes.
    """

    preset: str = "emoji32"
    """Defaults of the model and of its training; `vqvae2-fast info --presets` lists them."""
    level: str = "top"
    """Which level to model: top, bottom, or middle where there are three."""
    codes: Path = Path("runs/codes")
    """Folder that `vqvae2-fast extract` wrote."""
    out: Path | None = None
    """Folder of the run; runs/prior_LEVEL if none is named."""
    resume: bool = False
    """Go on from the latest checkpoint in --out."""
    unconditional: bool = False
    """Ignore the labels."""
    label_dropout: float = 0.1
    """Share of labels dropped in training, so that samples can be guided."""
    class_balance: float = 0.0
    """Up to 1: records of a class are seen (size of the largest / its own)^this times as often."""
    model: PixelSNAILConfig = field(default_factory=PixelSNAILConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def run(self) -> Result:
        device = self.prepare()
        out = self.out or Path(f"runs/prior_{self.level}")
        check_fresh(out, self.resume)
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"--label-dropout: expected 0 <= p < 1, got {self.label_dropout}.")
        codes = CodeDataset.load(self.codes / "train")
        held_out = CodeDataset.load(self.codes / "held_out")
        levels = level_names(len(codes.level_sizes))
        if self.level not in levels:
            raise ValueError(
                f"--level: expected one of {', '.join(levels)} of {self.codes}, got {self.level!r}."
            )
        level = levels.index(self.level)
        config = prior_config(self.model, codes, level, conditional=not self.unconditional)
        torch.manual_seed(self.train.seed)
        stage = prior_stage(
            PixelSNAIL(config).to(device), codes, held_out, self.train, level=level,
            label_dropout=self.label_dropout, class_balance=self.class_balance,
            name=f"train prior {self.level}",
        )  # fmt: skip
        trained = train(
            stage, self.train, out=out, resume=self.resume, progress=self.progress(),
            class_names=codes.class_names if config.num_classes else (),
        )  # fmt: skip
        marginal = marginal_entropy(held_out.codes[level].long(), codes.num_embeddings)
        per_image = config.size[0] * config.size[1]
        plot_curves(
            out / "curves.png",
            priors={self.level: trained.log},
            marginal_bits={self.level: marginal},
        )
        values = {
            "steps": self.train.steps, "level": self.level, "held_out": trained.metrics,
            "marginal_bits_per_image": marginal * per_image, "run": str(out),
        }  # fmt: skip
        write_result(out / "result.json", values)
        return Result(
            values,
            [f"held out: {trained.metrics['bits_per_image']:.0f} bits an image; marginal entropy "
             f"{marginal * per_image:.0f}", f"run: {out}", f"picture: {out / 'curves.png'}"],
        )  # fmt: skip


def prior_config(
    config: PixelSNAILConfig, codes: CodeDataset, level: int, *, conditional: bool = True
) -> PixelSNAILConfig:
    """`config` with what follows from the codes: sizes, K and classes."""
    sizes = codes.level_sizes
    return replace(
        config, size=sizes[level], condition_sizes=sizes[:level],
        num_embeddings=codes.num_embeddings,
        num_classes=len(codes.class_names) if conditional else 0,
    )  # fmt: skip
