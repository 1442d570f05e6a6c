"""`vqvae2-fast demo`: both stages on the embedded emoji, in minutes."""

from __future__ import annotations

import platform
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vqvae2_fast
from vqvae2_fast import ops
from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.commands.common import Command, Result, write_result
from vqvae2_fast.commands.training import check_run
from vqvae2_fast.console import Progress
from vqvae2_fast.data import CodeStore, load_emoji
from vqvae2_fast.data.groups import group_names, spread_over_groups
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.metrics import evaluate_pipeline
from vqvae2_fast.metrics.codes import use_of_codes
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.prior import kind_of_prior
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.presets import preset
from vqvae2_fast.report import (
    Section,
    picture_of_reconstructions,
    sample_grid,
    write_report,
)
from vqvae2_fast.report.curves import plot_curves, plot_rate
from vqvae2_fast.report.evaluation import evaluation_lines
from vqvae2_fast.report.pictures import write_picture
from vqvae2_fast.sampling.pipeline import Pipeline, sample_images
from vqvae2_fast.training.recipe import train_pipeline

__all__ = ["Demo"]

_PRESET = "emoji32"
_SAMPLES_A_GROUP = 12
_MOST = 20  # times the recipe's steps; a larger factor is a mistake, such as a number of steps
# Minutes of training leave priors that spread their draws; these settings give images that look
# more like emoji (temperature 1 without guidance is the plain model). Values are for top, then
# bottom. KD-EfficientNetLite0 of 1,400 samples: 0.195, precision 0.55, recall 0.14.
_RECOMMENDED: dict[str, Any] = {"temperature": (0.65, 0.7), "guidance_scale": (3.0, 2.0)}
_DRAWN = "temperature 0.65 and 0.7, guidance 3 and 2 (top and bottom)"
# Seconds of each part on two Zen 3 cores (the priors' reckoned from the time of a step), used only
# to estimate the time left.
_PLAN = {
    "train VQ-VAE": 75.0,
    "extract train": 7.0,
    "extract held out": 0.2,
    "train prior top": 36.0,
    "train prior bottom": 70.0,
    "evaluate held out": 12.0,
    "sample": 1.0,
}


@dataclass(kw_only=True)
class Demo(Command):
    """Train a small VQ-VAE-2 on 2,819 emoji and draw new ones, in two to five minutes on two cores.

    Leaves report.html and what it shows: reconstructions.png (held-out images above their
    reconstructions), samples.png (rows by group of classes), curves.png, rate.png, metrics.json;
    checkpoints in vqvae/, prior_top/, prior_bottom/; and pipeline/, to draw more from with
    `vqvae2-fast sample`.
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
        # Finer classes give better samples: a prior need not find out what an image is to show.
        train_set = load_emoji("train", subcategories=True)
        held_out = load_emoji("held_out", subcategories=True)
        groups = group_names(train_set.class_names)
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
        pipeline, codes = trained.pipeline, trained.codes

        evaluation = evaluate_pipeline(
            trained.vqvae, trained.priors, held_out, codecs=("webp", "jpeg"), progress=progress
        )
        values = evaluation.as_json()
        samples, labels = self._samples(pipeline, progress)
        metrics = self._metrics(values, codes)

        picture_of_reconstructions(
            trained.vqvae,
            held_out,
            self.out / "reconstructions.png",
            title=f"Held-out emoji: {values['reconstruction']['psnr']:.1f} dB at "
            f"{values['bits_per_image']:.0f} bits per image",
        )
        title = f"New images by group of classes: {_DRAWN}"
        write_picture(self.out / "samples.png", sample_grid(samples, labels, groups, title=title))
        plot_curves(
            self.out / "curves.png",
            trained.logs["vqvae"],
            {name: trained.logs[f"prior_{name}"] for name in values["levels"]},
            marginal_bits={n: v["marginal_bits_per_code"] for n, v in values["levels"].items()},
            num_embeddings=config.vqvae.num_embeddings,
        )
        plot_rate(self.out / "rate.png", evaluation)
        seconds = {**trained.seconds, "all": time.monotonic() - start}
        metrics["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
        metrics["resumed"] = bool(since)
        metrics["machine"] = _machine(device)
        write_result(self.out / "metrics.json", metrics)
        _report(self.out, metrics, since)
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

    def _samples(self, pipeline: Pipeline, progress: Progress) -> tuple[Tensor, list[int]]:
        """Samples of classes spread over each group, and the groups' numbers."""
        by_group = spread_over_groups(pipeline.class_names, _SAMPLES_A_GROUP)
        labels = [label for classes in by_group for label in classes]
        device = device_of(pipeline.priors[0])
        with progress.task("sample", 1) as task:
            images = sample_images(
                pipeline,
                len(labels),
                labels=torch.tensor(labels, device=device, dtype=torch.int64),
                seed=self.seed,
                **_RECOMMENDED,
            )
            task.update(1)
        return images.cpu(), [group for group, own in enumerate(by_group) for _ in own]

    def _metrics(self, values: dict[str, Any], codes: CodeStore) -> dict[str, Any]:
        """The held-out measures, the use of the codebooks in training, and the aims."""
        training_use = {name: asdict(use) for name, use in use_of_codes(codes).items()}
        webp = values["webp"]["psnr"]
        targets = {
            "psnr >= 26 dB": values["reconstruction"]["psnr"] >= 26,
            "each codebook >= 90 % used": all(use["share"] >= 0.9 for use in training_use.values()),
            "bits an image <= 1500": values["bits_per_image"] <= 1500,
            "psnr above WebP's at these bits": webp is None
            or values["reconstruction"]["psnr"] > webp,
        }
        return {
            "preset": _PRESET,
            "seed": self.seed,
            "held_out": values,
            "training_codes": training_use,
            "targets": targets,
            "samples": _RECOMMENDED,
        }

    def _lines(self, metrics: dict[str, Any], since: str) -> list[str]:
        use = ", ".join(f"{name} {u['used']}" for name, u in metrics["training_codes"].items())
        seconds = metrics["seconds"]
        pipeline = shlex.quote(str(self.out / "pipeline"))
        return [
            f"codes used by the training images: {use}",
            f"seconds{since}: "
            + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
            f"report: {self.out / 'report.html'}",
            f"pictures: {self.out}/reconstructions.png, samples.png, curves.png, rate.png",
            f"metrics: {self.out / 'metrics.json'}",
            f"draw more: vqvae2-fast sample --pipeline {pipeline} --label food --n 16",
        ]


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "vqvae2_fast": vqvae2_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "simd": ops.simd_level(),
    }


def _report(out: Path, metrics: dict[str, Any], since: str) -> None:
    values = metrics["held_out"]
    error, webp = values["reconstruction"], values["webp"]["psnr"]
    met = {name: "met" if reached else "missed" for name, reached in metrics["targets"].items()}
    aims = list(met.values())
    use = {name: f"{100 * u['share']:.0f} %" for name, u in metrics["training_codes"].items()}
    reached = [
        ["Reconstruction of held-out images", f"{error['psnr']:.2f} dB", "≥ 26 dB", aims[0]],
        [
            "Codebooks in use (training images)",
            ", ".join(f"{n} {s}" for n, s in use.items()),
            "≥ 90 %",
            aims[1],
        ],
        [
            "Bits an image under the priors, held out",
            f"{values['bits_per_image']:.0f}",
            "≤ 1500",
            aims[2],
        ],
        [
            "WebP's quality at those bits",
            "none" if webp is None else f"{webp:.2f} dB",
            "below ours",
            aims[3],
        ],
    ]
    levels = [
        [
            name,
            f"{level['codes']}",
            f"{level['nats_per_code']:.3f}",
            f"{level['bits_per_code']:.2f}",
            f"{level['bits_per_image']:.0f}",
            f"{level['marginal_bits_per_image']:.0f}",
            f"{level['perplexity']:.0f}",
        ]
        for name, level in values["levels"].items()
    ]
    levels.append(
        [
            "together",
            "",
            "",
            "",
            f"{values['bits_per_image']:.0f}",
            f"{values['marginal_bits_per_image']:.0f}",
            "",
        ]
    )
    seconds, machine = metrics["seconds"], metrics["machine"]
    write_report(
        out / "report.html",
        "VQ-VAE-2 on emoji",
        f"Trained in {seconds['all'] / 60:.1f} minutes{since}: an encoder that turns a "
        "32×32 image into two maps of discrete codes and back, and two priors that know which "
        "codes go together and draw new ones, class by class. "
        f"{values['images']} images were never trained on; the numbers here are theirs.",
        [
            Section(
                "New images",
                "Each row shows classes of one group, and for each image only its class was given; "
                f"{_DRAWN}: fewer surprises, clearer images. Classes with few examples (Flags "
                "has 8 in all) can only be memorised.",
                picture=out / "samples.png",
            ),
            Section(
                "Reconstructions",
                "Held-out images, each above what its codes decode to.",
                picture=out / "reconstructions.png",
            ),
            Section("Aims", header=("measure", "reached", "aim", ""), rows=reached),
            Section(
                "What the codes cost",
                "Bits to store one image's codes with the priors as the "
                "model of an arithmetic coder, next to what each code's frequency alone would "
                "give (marginal entropy). Held-out images.",
                header=(
                    "level",
                    "codes per image",
                    "nats per code",
                    "bits per code",
                    "bits per image",
                    "marginal bits per image",
                    "perplexity",
                ),
                rows=levels,
            ),
            Section(
                "Quality against bits",
                "WebP (lossy, slowest method) on the same images; its "
                "container of 20 bytes is not counted.",
                picture=out / "rate.png",
            ),
            Section("Training", picture=out / "curves.png"),
            Section(
                "Time",
                header=("part", f"seconds{since}"),
                rows=[[name, f"{value:.0f}"] for name, value in seconds.items()],
            ),
        ],
        "  ·  ".join(f"{name} {value}" for name, value in machine.items())
        + ". Emoji: Microsoft Fluent, MIT.",
    )
