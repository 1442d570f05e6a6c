"""`vqvae2-fast demo`: both stages on the embedded avatars, in minutes."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.commands.common import Command, Result
from vqvae2_fast.commands.training import check_run
from vqvae2_fast.console import Progress
from vqvae2_fast.data import load_small_avatars
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.prior import kind_of_prior
from vqvae2_fast.pipeline_training import finish, measured
from vqvae2_fast.presets import preset
from vqvae2_fast.report import Section
from vqvae2_fast.report.curves import plot_rate
from vqvae2_fast.report.evaluation import evaluation_lines
from vqvae2_fast.report.pipeline import draw_rows
from vqvae2_fast.training.recipe import train_pipeline

__all__ = ["Demo"]

_PRESET = "avatars32"
_SAMPLES_A_CLASS = 12
_MOST = 20  # times the recipe's steps; a larger factor is a mistake, such as a number of steps
# Chosen by eye, for top and bottom: lower temperatures and more guidance leave faces blank.
_RECOMMENDED: dict[str, Any] = {"temperature": (1.0, 0.8), "guidance_scale": (1.5, 1.0)}
# Seconds of each part on two Zen 3 cores (the priors' reckoned from the time of a step), used only
# to estimate the time left.
_PLAN = {
    "train VQ-VAE": 75.0,
    "extract train": 7.0,
    "extract held out": 0.2,
    "train prior top": 36.0,
    "train prior bottom": 70.0,
    "evaluate held out": 12.0,
    "draw": 1.0,
}


@dataclass(kw_only=True)
class Demo(Command):
    """Train a small VQ-VAE-2 on 4,330 avatars and draw new ones, in two to five minutes on two
    cores.

    Leaves report.html with its pictures: samples.png (a row for each style), nearest.png (the
    training images that are nearest to some of them), completions.png, reconstructions.png (of
    held-out images), curves.png, rate.png; metrics.json; checkpoints in vqvae/, prior_top/,
    prior_bottom/; and pipeline/, to draw more from with `vqvae2-fast sample`.
    """

    out: Path = Path("vqvae2-demo")
    """Folder for everything."""
    seed: int = 0
    """Seed of the weights, the order of the data, and the samples."""
    scale: float = 1.0
    """Factor of the recipe's training steps: 0.02 for a quick look, 3 to train three times as
    long."""
    resume: bool = False
    """Continue the demo in --out that was interrupted."""

    def run(self) -> Result:
        self.check_one_process()
        device = self.prepare()
        if not 0 < self.scale <= _MOST:
            raise ValueError(
                f"--scale: expected a factor above 0 and up to {_MOST}, got {self.scale:g}. It "
                "multiplies the steps of the recipe: 1 trains for two to five minutes."
            )
        config = preset(_PRESET).scaled(self.scale)
        check_run(self.out / "vqvae", "vqvae2", resume=self.resume)
        for level, prior in zip(level_names(len(config.priors)), config.priors, strict=True):
            check_run(self.out / f"prior_{level}", kind_of_prior(prior), resume=self.resume)
        self._check_scale(config.training.vqvae.steps)
        # The time of the earlier part is not known.
        since = " since it was resumed" if latest(self.out / "vqvae") is not None else ""
        start = time.monotonic()
        progress = Progress(_PLAN, quiet=self.quiet)
        train_set, held_out = load_small_avatars("train"), load_small_avatars("held_out")
        trained = train_pipeline(
            config,
            train_set,
            held_out,
            self.out,
            seed=self.seed,
            resume=self.resume,
            device=device,
            progress=progress,
            recommended=_RECOMMENDED,
        )
        evaluation, metrics = measured(
            trained, held_out, device=device, codecs=("webp", "jpeg"), progress=progress
        )
        metrics |= {"preset": _PRESET, "seed": self.seed, "targets": _targets(metrics)}
        plot_rate(self.out / "rate.png", evaluation)
        with progress.task("draw", 1) as task:
            drawn = draw_rows(trained.pipeline, _SAMPLES_A_CLASS, seed=self.seed)
            task.update(1)
        finish(
            trained,
            evaluation,
            metrics,
            train_set,
            held_out,
            drawn,
            self.out,
            title="VQ-VAE-2 on avatars",
            lead="An encoder turns a 32×32 image into two maps of discrete codes and back, and two "
            "priors know which codes go together and draw new ones, class by class. "
            f"{evaluation.images} images were never trained on, and neither were their pairs of "
            "eyes and mouth, or of two other parts; the numbers here are theirs.",
            more=[_aims(metrics), _rate(self.out / "rate.png")],
            start=start,
            since=since,
            seed=self.seed,
            foot="Avatars: DiceBear, CC0.",
        )
        return Result(metrics, [*evaluation_lines(evaluation), *self._lines(metrics, since)])

    def _check_scale(self, steps: int) -> None:
        """Raises ValueError if the demo was begun at another scale: its codes would be of another
        VQ-VAE than the one that --resume would train on."""
        begun = latest(self.out / "vqvae")
        if begun is None:
            return
        settings = read_object(begun / "state.json").get("train")
        found = settings.get("steps") if isinstance(settings, dict) else None
        if found != steps:
            raise ValueError(
                f"--scale: expected that with which {self.out} was begun, of {found} steps of the "
                f"VQ-VAE, got {self.scale:g}, of {steps}. Name another folder for another scale."
            )

    def _lines(self, metrics: dict[str, Any], since: str) -> list[str]:
        use = ", ".join(f"{name} {u['used']}" for name, u in metrics["training_codes"].items())
        seconds = metrics["seconds"]
        pipeline = shlex.quote(str(self.out / "pipeline"))
        return [
            f"codes used by the training images: {use}",
            f"seconds{since}: "
            + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
            f"report: {self.out / 'report.html'}",
            f"pictures: {self.out}/samples.png, nearest.png, completions.png, "
            "reconstructions.png, curves.png, rate.png",
            f"metrics: {self.out / 'metrics.json'}",
            f"draw more: vqvae2-fast sample --pipeline {pipeline} --label moods --n 16",
        ]


def _targets(metrics: dict[str, Any]) -> dict[str, bool]:
    """What the demo aims at, and whether it was reached."""
    values = metrics["held_out"]
    webp, psnr = values["webp"]["psnr"], values["reconstruction"]["psnr"]
    return {
        "psnr >= 26 dB": psnr >= 26,
        "each codebook >= 90 % used": all(
            use["share"] >= 0.9 for use in metrics["training_codes"].values()
        ),
        "bits an image <= 1500": values["bits_per_image"] <= 1500,
        "psnr above WebP's at these bits": webp is None or psnr > webp,
    }


def _aims(metrics: dict[str, Any]) -> Section:
    values = metrics["held_out"]
    webp = values["webp"]["psnr"]
    used = ", ".join(
        f"{name} {100 * use['share']:.0f} %" for name, use in metrics["training_codes"].items()
    )
    reached = (
        ("Reconstruction of held-out images", f"{values['reconstruction']['psnr']:.2f} dB"),
        ("Codebooks in use (training images)", used),
        ("Bits an image under the priors, held out", f"{values['bits_per_image']:.0f}"),
        ("WebP's quality at those bits", "none" if webp is None else f"{webp:.2f} dB"),
    )
    aims = ("≥ 26 dB", "≥ 90 %", "≤ 1500", "below ours")
    met = ["met" if reached else "missed" for reached in metrics["targets"].values()]
    return Section(
        "Aims",
        "None of them concerns the drawn images: look at these.",
        header=("measure", "reached", "aim", ""),
        rows=[[*row, aim, own] for row, aim, own in zip(reached, aims, met, strict=True)],
    )


def _rate(picture: Path) -> Section:
    return Section(
        "Quality against bits",
        "WebP (lossy, slowest method) on the same images; its container of 20 bytes is not "
        "counted.",
        picture=picture,
    )
