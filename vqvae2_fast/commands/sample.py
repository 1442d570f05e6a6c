"""`vqvae2-fast sample`: new images, in any number."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro

from vqvae2_fast.commands.common import (
    Command,
    ModelOptions,
    Result,
    check_out,
    load_classifier,
)
from vqvae2_fast.commands.shared_samples import shared_samples
from vqvae2_fast.console.progress import Progress
from vqvae2_fast.data import ImageFolder
from vqvae2_fast.data.groups import groups_in_turn
from vqvae2_fast.data.pixels import decode_image
from vqvae2_fast.data.sample_folder import SampleFolder, read_index
from vqvae2_fast.files.durable import explained, renamed_into_place
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import open_untrusted
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.report.samples import folder_grid
from vqvae2_fast.runs.interrupt import stop_requests
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.sampling import DrawSettings
from vqvae2_fast.sampling.drawing import Batches, best_batch_size, draw_into
from vqvae2_fast.sampling.known import lower_rows, open_known, painted
from vqvae2_fast.sampling.labels import NO_CLASS, class_numbers
from vqvae2_fast.sampling.rejection import RejectionRule
from vqvae2_fast.sampling.series import Judge, SampleSeries, resolved_settings
from vqvae2_fast.sampling.words import with_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.sampling import Pipeline
    from vqvae2_fast.sampling.known import Known


__all__ = ["Sample"]

_COUNT, _COMPLETIONS = 100, 8  # images without --n, and for each known image
_MOST_NAMED = 6  # classes in the line about the images
_MOST_SAMPLES = 2**32  # the noise has 32 bits for a sample's number


@dataclass(kw_only=True)
class Sample(Command):
    """Draw images. Writes images/*.png as they are drawn, an index of them, samples.jsonl (class
    and log-probabilities of each), settings.json, and samples.png to look at.

    With engine cpu, image i depends only on the seed and the settings, not on --n, --batch-size or
    the number of processes. Under torchrun the processes share the work: `torchrun --nproc-per-node
    2 --no-python -- vqvae2-fast sample ...`.
    """

    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    count: Annotated[int | None, tyro.conf.arg(name="n")] = None
    """How many images to draw; the classes, or the images of --known, are used in turn. By default
    100, or 8 for each image of --known if that is fewer."""
    label: tuple[str, ...] = ()
    """Classes to draw: numbers, names or beginnings of names; a group ("Flags" of "Flags - flag")
    or its beginning for all its classes; or `none` to draw without a class. By default all classes
    in equal parts."""
    words: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
    """What the images are to have beside their class, such as glasses=any hair=variant20. For
    priors that were trained with words (`extract --words`); `vqvae2-fast info` lists a
    pipeline's."""
    seed: int = 0
    """Seed of the noise with which images are drawn."""
    temperature: tuple[float, ...] = ()
    """Below 1, likely codes are drawn more often; 0 always takes the likeliest. For this and the
    next three options give one value, or one per level, coarse to fine; the default is what the
    pipeline recommends, or else has no effect."""
    top_k: tuple[int, ...] = ()
    """Draw only among the k likeliest codes; 0 for no limit."""
    top_p: tuple[float, ...] = ()
    """Draw only among the likeliest codes that together have this probability; 1 for no limit."""
    guidance_scale: tuple[float, ...] = ()
    """Above 1, the class is followed more closely (for priors trained with dropped labels)."""
    known: str | None = None
    """Images to complete: an image, a folder of images, a code store, or `emoji` (held out)."""
    skip_corrupt: bool = False
    """Leave out files of a folder of --known that cannot be decoded, with a warning."""
    skip_small: bool = False
    """Leave out images of a folder of --known that are smaller than the model's, with a warning."""
    keep: float | None = None
    """Share of the rows of --known to keep, counted from the top, as the priors draw downwards; by
    default 0.5."""
    mask: Path | None = None
    """In place of --keep: an image, white or transparent where to draw. It is brought to the size
    of the model like the images of --known."""
    candidates: int | None = None
    """With --mask: fill the holes of each map this many times, and keep a filling that suits the
    known codes after it. By default 1, which looks only at what comes before."""
    classifier: Path | None = None
    """Reject samples by the probability that this classifier (from `train-classifier`) gives their
    class; needs --best or --threshold. --n then counts the samples drawn, not those kept."""
    best: tuple[int, int] | None = None
    """Two numbers M N: keep the best M of every N samples of a class."""
    threshold: float | None = None
    """Keep samples of at least this probability."""
    engine: str = "auto"
    """What draws the codes, see `sample_codes`; `auto` takes the fastest exact engine."""
    batch_size: int = 0
    """How many images to draw at a time; 0 chooses by their size."""
    out: Path | None = None
    """Folder for the results; by default runs/samples, or the first of runs/samples-2, ... that is
    free."""
    resume: bool = False
    """Draw what is missing in --out; with a larger --n, add to it."""

    def run(self) -> Result:
        if self.count is not None and self.count < 1:
            raise ValueError(f"--n: expected 1 or more, got {self.count}.")
        if self.batch_size < 0:
            raise ValueError(f"--batch-size: expected 0 or more, got {self.batch_size}.")
        if min(self.top_k, default=0) < 0:
            raise ValueError(f"--top-k: expected 0, for no limit, or more, got {min(self.top_k)}.")
        if self.count is not None and self.count > _MOST_SAMPLES:
            raise ValueError(f"--n: expected at most {_MOST_SAMPLES}, got {self.count}.")
        if self.resume and self.out is None:
            raise ValueError("--resume: name the folder to continue with by --out.")
        if self.out is not None:
            check_out(self.out)
        ranks = Ranks.of_this_run()
        series = self._series(ranks)
        most = _COUNT if series.known is None else _COMPLETIONS * len(series.known)
        total = self.count or min(_COUNT, most) // series.group * series.group or series.group
        if total % series.group:
            raise ValueError(
                f"--n: expected a multiple of the {series.group} candidates of --best, got {total}."
            )
        size = self._batch_size(series.pipeline)

        new: list[Path] = []

        def begin() -> SampleFolder:
            out = self.out or _free_folder(Path("runs/samples"))
            continued = SampleFolder.begun_for(out) > 0
            with _explained(out) if continued else explained(f"cannot write to {out}"):
                folder = SampleFolder.begin(
                    out, total, series.identity(), resume=self.resume, alone=ranks.count == 1
                )
            if ranks.count == 1 and not continued:
                new.append(out)
            return folder

        try:
            with shared_samples(ranks, begin, total, series.group) as (folder, missing):
                # The first process prints for all of them; they share the work evenly.
                progress = Progress(quiet=self.quiet or ranks.rank > 0)
                with _explained(folder.path):
                    self._draw(folder, series, missing, size, progress, ranks)
                    return self._finish(folder, series, ranks)
        except (ValueError, TypeError, RuntimeError):
            # An engine refuses a prior only when it draws.
            for out in new:
                SampleFolder.discard_unused(out)
            raise

    def _draw(
        self,
        folder: SampleFolder,
        series: SampleSeries,
        missing: list[range],
        size: int,
        progress: Progress,
        ranks: Ranks,
    ) -> None:
        """Draw this process's share of the missing samples."""

        batches = Batches(missing, size, series.group, ranks.rank, ranks.count)
        before = 0 if ranks.count > 1 else folder.count - batches.num_samples
        total = before + batches.num_samples
        with stop_requests() as stop:
            draw_into(
                folder,
                series,
                batches,
                progress,
                before=before,
                after_row=lambda done: stop.check(
                    f"{done} of {total} images are whole and in the index. Continue with "
                    f"--resume --out {shlex.quote(str(folder.path))}."
                ),
            )

    def _series(self, ranks: Ranks) -> SampleSeries:
        pipeline = self.models.open(ranks.device(self.prepare()))
        most = self._batch_size(pipeline) * max(1, self.candidates or 1)
        known = known_images(self, pipeline, warn=ranks.rank == 0)
        classes, known_labels = _labels_of(self.label, pipeline, known)
        told = classes if known_labels is None else known_labels.unique().tolist()
        words = _words_of(self.words, pipeline, told)
        own = self._settings(pipeline, told)
        settings = resolved_settings(pipeline, batch_size=most, **own)
        judge = self._judge(pipeline, told)
        return SampleSeries(pipeline, settings, classes, known, known_labels, judge, words=words)

    def _batch_size(self, pipeline: Pipeline) -> int:
        return self.batch_size or best_batch_size(pipeline)

    def _settings(self, pipeline: Pipeline, labels: Sequence[int]) -> dict[str, Any]:
        """The settings that were given, or else those that the pipeline recommends.

        Args:
            labels: Those of the images.
        """
        settings: dict[str, Any] = dict(pipeline.recommended)
        for setting in fields(DrawSettings):
            name, value = setting.name, getattr(self, setting.name)
            if not isinstance(value, tuple):
                settings[name] = value
            elif value:
                values = tuple(k or None for k in value) if name == "top_k" else value
                settings[name] = values if len(values) > 1 else values[0]
        if _classless(pipeline, labels):
            asked = next((scale for scale in self.guidance_scale if scale != 1), None)
            if asked is not None:
                raise ValueError(
                    f"--guidance-scale: expected 1 for images without a class, got {asked:g}: it "
                    "moves the logits away from those without a class. Name a class by --label, "
                    "or leave it out."
                )
            settings["guidance_scale"] = 1.0
        return settings

    def _recommended(self, series: SampleSeries) -> list[str]:
        """Lines that name the settings which the pipeline recommends."""
        used = [name for name in series.pipeline.recommended if not getattr(self, name)]
        known = series.known_labels
        if _classless(series.pipeline, series.classes if known is None else known.tolist()):
            used = [name for name in used if name != "guidance_scale"]
        if not used:
            return []
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in used)
        return [f"{flags}: as the pipeline recommends"]

    def _judge(self, pipeline: Pipeline, classes: Sequence[int]) -> Judge | None:
        if self.classifier is None:
            if self.best is not None or self.threshold is not None:
                raise ValueError(
                    "--classifier: expected one for --best or --threshold to judge by, got none."
                )
            return None
        if (self.best is None) == (self.threshold is None):
            raise ValueError("--classifier: expected either --best M N or --threshold P with it.")
        if pipeline.num_classes in classes or not pipeline.num_classes:
            raise ValueError(
                "--classifier: expected samples of classes; without a class they cannot be judged."
            )
        config = pipeline.networks()[0].config
        model = load_classifier(
            self.classifier,
            device_of(pipeline.priors[0]),
            pipeline.class_names,
            (config.image_channels, *config.image_size),
        )
        keep, among = self.best or (1, 1)
        return Judge(model, RejectionRule(keep, among, self.threshold))

    def _finish(self, folder: SampleFolder, series: SampleSeries, ranks: Ranks) -> Result:
        out = folder.path
        if not folder.finish():
            if ranks.rank:
                return Result({}, [])
            return Result({"out": str(out)}, ["this process is done; others are still drawing"])
        picture = out / "samples.png"
        kept = sum(row["file"] is not None for row in read_index(out))
        if kept:
            with renamed_into_place(picture) as part:
                folder_grid(out, series.known).save(part, format="PNG")
        values = {
            "images": kept,
            "drawn": folder.count,
            "folder": str(out / "images"),
            "index": str(out / "samples.jsonl"),
            "picture": str(picture) if kept else None,
            "classes": [series.class_name(label) for label in series.classes],
            "settings": series.drawing(),
        }
        return Result(
            values,
            [
                f"{kept:,} image{'' if kept == 1 else 's'} in {out / 'images'} "
                f"({_described(series, folder.count)})",
                *self._recommended(series),
                *([] if series.judge is None else [f"kept of {folder.count} drawn: {kept}"]),
                f"index: {values['index']}",
                *([f"picture: {picture}"] if kept else []),
            ],
        )


def _labels_of(
    asked: Sequence[str], pipeline: Pipeline, known: Known | None
) -> tuple[tuple[int, ...], Tensor | None]:
    """The labels that are used in turn, or those of the known images.

    Raises:
        ValueError: Labels for priors without classes; an unknown or ambiguous label; or no label
            for known images of other classes.
    """
    num_classes = pipeline.num_classes
    if not num_classes:
        if asked:
            raise ValueError(f"--label: the priors have no classes, got {', '.join(asked)}.")
        return (), None
    if asked:
        names = pipeline.class_names
        numbers = [class_numbers(one, num_classes, names) for one in asked]
        return tuple(number for own in numbers for number in own), None
    if known is None:
        names = pipeline.class_names
        return tuple(groups_in_turn(names) if names else range(num_classes)), None
    labels = known.labels_for(pipeline.class_names)
    if labels is None:
        what = "those of the known images are not those of the priors"
        if not known.dataset.class_names:
            what = "the known images have none"
        raise ValueError(
            f"--label: expected a class, because {what}. Name a class, or `{NO_CLASS}` to draw "
            "without one."
        )
    return (), torch.where(labels < 0, num_classes, labels)


def _words_of(asked: Sequence[str], pipeline: Pipeline, labels: Sequence[int]) -> tuple[str, ...]:
    """The words, if the pipeline has them and each of the labels is a class.

    Raises:
        ValueError: As `with_words`.
    """
    try:
        with_words(pipeline, labels or None, asked)
    except ValueError as error:
        raise ValueError(f"--with: {error}") from error
    return tuple(asked)


def _classless(pipeline: Pipeline, labels: Sequence[int]) -> bool:
    """Whether these are labels of images without a class alone, of priors that have classes."""
    return bool(pipeline.num_classes) and set(labels) == {pipeline.num_classes}


def _explained(out: Path) -> AbstractContextManager[None]:
    """Adds to an error of the disk what it means for the run."""
    return explained(
        f"cannot write to {out}",
        "All images in its index are whole",
        then=f"continue with `--resume --out {shlex.quote(str(out))}`",
    )


def _free_folder(path: Path) -> Path:
    numbered = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in count(1))
    return next(folder for folder in numbered if not folder.exists())


def _described(series: SampleSeries, count: int) -> str:
    """Classes and settings in words, of the first `count` images."""
    parts = []
    classes = series.pipeline.num_classes
    drawn = series.classes[:count]  # they take turns
    if classes > 1 and sorted(drawn) == list(range(classes)):
        parts.append(f"{classes:,} classes")
    elif len(drawn) > _MOST_NAMED:
        parts.append(f"{len(set(drawn)):,} of {classes:,} classes")
    elif drawn:
        parts.append(", ".join(series.class_name(label) or "no class" for label in drawn))
    if series.words:
        parts.append(f"with {', '.join(series.words)}")
    settings = series.drawing()
    parts.append(f"seed {settings['seed']}")
    for name, none in (("temperature", 1), ("top_k", None), ("top_p", None), ("guidance_scale", 1)):
        values = settings[name]
        if name == "guidance_scale" and _classless(series.pipeline, drawn):
            continue  # of the images that were drawn so far, none has a class to follow
        if any(value != none for value in values):
            shown = values[:1] if len(set(values)) == 1 else values
            texts = ("all" if value is None else f"{value:g}" for value in shown)
            parts.append(f"{name.replace('_', ' ')} {' and '.join(texts)}")
    return ", ".join(parts)


def known_images(asked: Sample, pipeline: Pipeline, *, warn: bool = True) -> Known | None:
    """The images to complete, or None without --known.

    Args:
        warn: Whether to tell that a model of grey images takes the colour of these.

    Raises:
        ValueError: Options that need --known or exclude each other, or as `open_known`.
    """
    where = {"--keep": asked.keep, "--mask": asked.mask, "--candidates": asked.candidates}
    given = [flag for flag, value in where.items() if value is not None]
    skip = {"--skip-corrupt": asked.skip_corrupt, "--skip-small": asked.skip_small}
    given += [flag for flag, value in skip.items() if value]
    if asked.known is None:
        if given:
            raise ValueError(f"{given[0]}: expected images to complete with it, by --known.")
        return None
    if asked.mask is None and asked.candidates is not None:
        raise ValueError(
            "--candidates: expected a --mask with it: no known codes follow where only the "
            "upper rows are kept."
        )
    if asked.mask is not None and asked.keep is not None:
        raise ValueError("--keep: expected either --keep or --mask, got both.")
    config = pipeline.networks()[0].config
    if asked.mask is None:
        hole = lower_rows(0.5 if asked.keep is None else asked.keep, config)
    else:
        hole = painted(asked.mask, 1 if asked.candidates is None else asked.candidates, config)
    known = open_known(
        asked.known,
        hole,
        pipeline,
        skip_corrupt=asked.skip_corrupt,
        skip_small=asked.skip_small,
    )
    if warn and config.image_channels == 1:
        _warn_of_colour(known, Path(asked.known), config)
    return known


def _warn_of_colour(known: Known, path: Path, config: VQVAE2Config) -> None:
    """Name the first image whose colour a model of grey images does not keep."""
    files, inside = [path], None
    if isinstance(known.dataset, ImageFolder):
        files, inside = [path / name for name in known.dataset.names], path
    elif not path.is_file():  # a store of codes
        return
    for file in files:
        with open_untrusted(file, inside=inside) as opened:
            # By its pixels: grey photographs are often written with three channels.
            shape = (3, *config.image_size)
            pixels = decode_image(opened, f"known: {printable(file)}", shape, convert_channels=True)
        if (pixels != pixels[:1]).any():
            others = ", as is that of any such image after it" if len(files) > 1 else ""
            warnings.warn(
                f"{printable(file)} has colour, and the model's images are grey: its colour is "
                f"lost{others}.",
                stacklevel=2,
            )
            return
