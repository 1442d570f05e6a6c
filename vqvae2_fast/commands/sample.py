"""`vqvae2-fast sample`: new images, many if need be."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vqvae2_fast.commands.common import (
    Command,
    ModelOptions,
    Result,
    check_out,
    load_classifier,
)
from vqvae2_fast.console.progress import Progress
from vqvae2_fast.data.sample_folder import SampleFolder, read_index
from vqvae2_fast.files.durable import renamed_into_place
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.report.grids import pictures
from vqvae2_fast.report.samples import folder_grid
from vqvae2_fast.runs.interrupt import InterruptedRun, stop_requests
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.sampling import interface_of
from vqvae2_fast.sampling.draw_plan import (
    DrawPlan,
    Judge,
    batches_of,
    drawing_settings,
    labels_of,
)
from vqvae2_fast.sampling.known import open_known
from vqvae2_fast.sampling.rejection import RejectionRule
from vqvae2_fast.sampling.stream import codes_per_image, draw_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.console.progress import Task
    from vqvae2_fast.sampling import Pipeline

__all__ = ["Sample", "batch_of_drawing", "draw_into"]

_COUNT, _COMPLETIONS = 100, 8  # images without --n, and for each of the known ones
# Codes of a batch without --batch-size: 128 images of emoji32, 8 of 256x256, from where on the
# engine gains little by more.
_BATCH_CODES, _BATCH_IMAGES = 40_960, 128


@dataclass(kw_only=True)
class Sample(Command):
    """Draw images; leaves images/*.png as they are drawn, their index samples.jsonl (class and
    log-probabilities of each), settings.json, and samples.png to look at.

    Image i of a seed and settings is the same whatever --n, --batch-size and the number of
    processes are. Under torchrun they share the work: `torchrun --nproc-per-node 2 --no-python --
    vqvae2-fast sample ...`.
    """

    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    n: int | None = None
    """Images in all, the classes or the images of --known taking turns; by default 100, or 8 for
    each of --known where that is fewer."""
    label: tuple[str, ...] = ()
    """Classes: numbers, or beginnings of their names, or `none` to draw without one; all classes
    in equal parts if none is named."""
    seed: int = 0
    temperature: tuple[float, ...] = ()
    """Below 1 likelier codes are drawn more often; 0 always takes the likeliest. This and the next
    three: one value, or one a level, coarse to fine; by default what --preset comes with, or 1."""
    top_k: tuple[int, ...] = ()
    """Draw among the k likeliest codes only; 0 for no limit."""
    top_p: tuple[float, ...] = ()
    """Draw among the likeliest codes that together have this probability; 1 for no limit."""
    guidance_scale: tuple[float, ...] = ()
    """Above 1 the class is followed more closely (for priors trained with dropped labels)."""
    known: str | None = None
    """Complete images: an image, a folder of them, a code store, or `emoji` (the held-out ones)."""
    keep: float = 0.5
    """Share of the rows of --known that is kept, from above: the priors draw downwards."""
    classifier: Path | None = None
    """Reject samples by the probability that this classifier (`train-classifier`) gives their
    class: with --best or --threshold. --n then counts what is drawn, not what is kept."""
    best: tuple[int, int] | None = None
    """Of every so many (the second number) samples of a class keep the best few (the first)."""
    threshold: float | None = None
    """Keep samples of this probability or more."""
    engine: str = "auto"
    """How codes are drawn, see `sample_codes`; `auto` takes the fastest exact one."""
    batch_size: int = 0
    """Images drawn at a time; 0 chooses by their size."""
    out: Path | None = None
    """Folder for what is written; by default runs/samples, or the first free of runs/samples-2, ...
    """
    resume: bool = False
    """Go on with what is missing in --out; with a greater --n, add to it."""

    def run(self) -> Result:
        for name, value in (("n", self.n), ("batch-size", self.batch_size or None)):
            if value is not None and value < 1:
                raise ValueError(f"--{name}: expected 1 or more, got {value}.")
        if self.resume and self.out is None:
            raise ValueError("--resume: name the folder to go on with by --out.")
        if self.out is not None:
            check_out(self.out)
        ranks = Ranks.of_this_run()
        plan = self._plan(ranks)
        most = _COUNT if plan.known is None else _COMPLETIONS * len(plan.known)
        total = self.n or min(_COUNT, most) // plan.group * plan.group or plan.group
        if total % plan.group:
            raise ValueError(
                f"--n: expected a multiple of the {plan.group} candidates of --best, got {total}."
            )
        size = self.batch_size or batch_of_drawing(plan.pipeline)
        with ExitStack() as stack:
            begun: list[SampleFolder] = []

            def begin() -> dict[str, Any]:
                out = self.out or _free_folder(Path("runs/samples"))
                with _explained(out):
                    folder = SampleFolder.begin(
                        out, total, plan.identity(), resume=self.resume, alone=ranks.count == 1
                    )
                    begun.append(stack.enter_context(closing(folder)))
                    return {"out": str(out), "missing": folder.missing(plan.group)}

            told = ranks.told_by_first(begin)
            out = Path(told["out"])
            if not begun:
                begun.append(stack.enter_context(closing(SampleFolder.join(out, total))))
            batches = batches_of(told["missing"], size, plan.group)[ranks.rank :: ranks.count]
            # The first process speaks for all, which share the work evenly.
            progress = Progress(quiet=self.quiet or ranks.rank > 0)
            with _explained(out):
                draw_into(begun[0], plan, batches, progress, total if ranks.count == 1 else None)
                return self._finish(begun[0], plan, ranks)

    def _plan(self, ranks: Ranks) -> DrawPlan:
        pipeline, class_names = self.models.open(ranks.device(self.prepare()))
        recommended = self.models.recommended()
        settings = drawing_settings(
            pipeline,
            seed=self.seed,
            temperature=self.temperature or recommended.get("temperature", (1.0,)),
            top_k=self.top_k or (0,),
            top_p=self.top_p or (1.0,),
            guidance_scale=self.guidance_scale or recommended.get("guidance_scale", (1.0,)),
            engine=self.engine,
        )
        known = None if self.known is None else open_known(self.known, self.keep, pipeline)
        classes, known_labels = labels_of(self.label, class_names, pipeline.num_classes, known)
        judge = self._judge(pipeline, class_names, classes)
        return DrawPlan(pipeline, class_names, settings, classes, known, known_labels, judge)

    def _judge(
        self, pipeline: Pipeline, class_names: tuple[str, ...], classes: tuple[int, ...]
    ) -> Judge | None:
        if self.classifier is None:
            if self.best is not None or self.threshold is not None:
                raise ValueError("--classifier: --best and --threshold need one to judge by.")
            return None
        if (self.best is None) == (self.threshold is None):
            raise ValueError("--classifier: expected one of --best M N and --threshold P with it.")
        if pipeline.num_classes in classes or not pipeline.num_classes:
            raise ValueError("--classifier: samples without a class have no probability of it.")
        config = pipeline.vqvae.config
        model = load_classifier(
            self.classifier,
            device_of(pipeline.priors[0]),
            class_names,
            (config.image_channels, *config.image_size),
        )
        keep, among = self.best or (1, 1)
        return Judge(model, RejectionRule(keep, among, self.threshold))

    def _finish(self, folder: SampleFolder, plan: DrawPlan, ranks: Ranks) -> Result:
        out = folder.path
        if not folder.finish():
            if ranks.rank:
                return Result({}, [])
            return Result({"out": str(out)}, ["this process is done, others are still drawing"])
        picture = out / "samples.png"
        kept = sum(row["file"] is not None for row in read_index(out))
        if kept:
            with renamed_into_place(picture) as part:
                folder_grid(out, plan.known).save(part, format="PNG")
        values = {
            "images": kept,
            "drawn": folder.count,
            "folder": str(out / "images"),
            "index": str(out / "samples.jsonl"),
            "picture": str(picture),
            "classes": [plan.class_name(label) for label in plan.classes],
            "settings": vars(plan.settings),
        }
        return Result(
            values,
            [
                f"{kept} images in {out / 'images'} ({_described(plan)})",
                *([] if plan.judge is None else [f"kept of {folder.count} drawn: {kept}"]),
                f"index: {values['index']}",
                f"picture: {picture}",
            ],
        )


def batch_of_drawing(pipeline: Pipeline) -> int:
    """Images that are best drawn at a time."""
    return max(1, min(_BATCH_IMAGES, _BATCH_CODES // codes_per_image(pipeline)))


def draw_into(
    folder: SampleFolder,
    plan: DrawPlan,
    batches: list[range],
    progress: Progress,
    total: int | None = None,
) -> None:
    """Draw batches of samples into a folder.

    Args:
        total: Samples of the folder, of which those not in `batches` are done already.
    """
    each, wanted = codes_per_image(plan.pipeline), sum(map(len, batches))
    if not wanted:
        return
    before = 0 if total is None else total - wanted
    with progress.task("sample", (before + wanted) * each, before * each) as task:
        pace = _Pace(plan.pipeline, task, before, before + wanted)
        with stop_requests() as stop:
            for samples in batches:

                def drawn_row(level: int, row: int, rows: int, size: int = len(samples)) -> None:
                    pace.update(size, level, row / rows)
                    if stop.number is not None:
                        # What is drawn of this batch is lost; nothing of it is on the disk.
                        raise InterruptedRun(
                            f"sample: stopped by signal {stop.number}; {pace.images} of "
                            f"{pace.total} images are whole and in the index. Go on with "
                            f"--resume --out {folder.path}.",
                            stop.number,
                        )

                drawn = draw_batch(
                    plan.pipeline, samples, plan.settings, progress=drawn_row, **plan.batch(samples)
                )
                kept, probabilities = plan.judged(drawn)
                images = [
                    image if keep else None
                    for image, keep in zip(pictures(drawn.images), kept, strict=True)
                ]
                folder.add(samples, images, plan.rows(drawn, probabilities))
                pace.images += len(samples)
                pace.update(0, 0, 0.0)


class _Pace:
    """How far a run is, and how fast: `images` of `total` are written."""

    def __init__(self, pipeline: Pipeline, task: Task, images: int, total: int) -> None:
        self.images, self.total = images, total
        self._sizes = [math.prod(interface_of(prior).size) for prior in pipeline.priors]
        self._task, self._first, self._start = task, images, time.monotonic()

    def update(self, batch: int, level: int, share: float) -> None:
        """A share of a level's codes is drawn for so many images more."""
        each = sum(self._sizes)
        codes = self.images * each
        codes += int(batch * (sum(self._sizes[:level]) + self._sizes[level] * share))
        rate = (codes - self._first * each) / max(1e-9, time.monotonic() - self._start)
        self._task.update(
            codes,
            f"{self.images}/{self.total} images  {rate:,.0f} codes/s  {rate / each:.3g} images/s",
        )


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Says of a failing disk what it means."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write to {out}: {error.strerror}. All images of its index are whole; when "
            f"there is room, `--resume --out {out}` goes on",
        ) from error


def _free_folder(path: Path) -> Path:
    numbered = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in count(1))
    return next(folder for folder in numbered if not folder.exists())


def _described(plan: DrawPlan) -> str:
    """Classes and settings in words."""
    parts = []
    if plan.classes == tuple(range(plan.pipeline.num_classes)) and len(plan.classes) > 1:
        parts.append(f"{len(plan.classes)} classes")
    elif plan.classes:
        parts.append(", ".join(plan.class_name(label) or "no class" for label in plan.classes))
    settings = vars(plan.settings)
    parts.append(f"seed {plan.settings.seed}")
    for name, none in (("temperature", 1), ("top_k", None), ("top_p", None), ("guidance_scale", 1)):
        values = settings[name]
        if any(value != none for value in values):
            shown = values[:1] if len(set(values)) == 1 else values
            texts = ("all" if value is None else f"{value:g}" for value in shown)
            parts.append(f"{name.replace('_', ' ')} {' and '.join(texts)}")
    return ", ".join(parts)
