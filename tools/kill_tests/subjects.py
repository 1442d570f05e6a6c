"""The commands that are killed: small models and few images for them, and what must hold."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vqvae2_fast.checkpoints import load_training, save
from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.checkpoints.sums import check_sums
from vqvae2_fast.cli import main as vqvae2_fast
from vqvae2_fast.commands import demo, train_classifier, train_prior, train_vqvae
from vqvae2_fast.data import (
    CodeStore,
    ImageTensorDataset,
    Split,
    load_emoji,
    sources,
    verify,
    write_codes,
)
from vqvae2_fast.data.code_format import MANIFEST
from vqvae2_fast.data.sample_folder import read_index
from vqvae2_fast.training import TrainConfig, Variants
from vqvae2_fast.training.preset import Preset, PresetTraining

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.codes import random_codes  # noqa: E402
from helpers.models import SMALL_TOP, SMALL_VQVAE, tiny_pipeline  # noqa: E402

TRAINING = TrainConfig(
    steps=18,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=4,
    average_decay=0.9,
    log_every=1,
    validate_every=3,
    save_every=2,
    keep=3,
)
VQVAE = replace(SMALL_VQVAE, image_size=(32, 32), num_embeddings=16, embedding_dim=8, restart=0.3)
TOP = replace(SMALL_TOP, size=(8, 8), num_embeddings=16, num_classes=3)
BOTTOM = replace(TOP, size=(16, 16), condition_sizes=((8, 8),))
PRESET = Preset(
    VQVAE,
    (TOP, BOTTOM),
    PresetTraining(TRAINING, (TRAINING, TRAINING), flip=True, variants=Variants(flip=True)),
)

Work = Callable[[], object]


@dataclass(frozen=True)
class Subject:
    """A command to kill.

    Args:
        work: Makes what its processes call, given the folder of data and models, the path of the
            result, and whether to resume.
        done: What is finished in the result, which may only grow; raises AssertionError if it is
            not sound.
        content: The bytes to compare, by file name.
    """

    work: Callable[[Path, Path, bool], Sequence[Work]]
    done: Callable[[Path], set[object]]
    content: Callable[[Path], dict[str, bytes]]


def prepare(place: Path) -> None:
    """Write the data and models that the commands read, and replace their presets by small ones."""
    save(tiny_pipeline(), place / "pipeline", class_names=("cat", "dog", "emu"))
    for seed, (split, count) in enumerate((("train", 200), ("held_out", 40))):
        codes = random_codes(16, count, sizes=((8, 8), (16, 16)), seed=seed)
        codes.write(place / "codes" / split)
    for module in (demo, train_prior, train_vqvae):
        module.preset = lambda name: PRESET
    demo.load_small_avatars = sources.load_emoji = few_emoji
    recipe = train_classifier.classifier_recipe

    def often_saved(*arguments: Any, **options: Any) -> tuple[Any, TrainConfig]:
        return recipe(*arguments, **options)[0], TRAINING

    train_classifier.classifier_recipe = often_saved


def few_emoji(split: Split, size: int = 32, **options: Any) -> ImageTensorDataset:
    every = load_emoji(split, size, **options)
    return ImageTensorDataset(every.images[::10], every.labels[::10], every.class_names)


def command(line: str, *, resumes: bool = True, processes: int = 1) -> Any:
    """The work of a command; "@" stands for the folder of data and models.

    Args:
        resumes: Whether it has --resume.
        processes: How many share the work, as under torchrun.
    """

    def work(place: Path, out: Path, resume: bool) -> list[Work]:
        given = [*line.replace("@", f"{place}/").split(), "--quiet", "--out", str(out)]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]

        def run(rank: int) -> None:
            if processes > 1:
                numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
                os.environ |= {n: str(v) for n, v in (numbers | {"MASTER_PORT": port}).items()}
                os.environ["MASTER_ADDR"] = "localhost"
            with redirect_stdout(io.StringIO()):
                code = vqvae2_fast([*given, *(["--resume"] if resume and resumes else [])])
            assert code == 0, f"{line} ended with {code}"

        return [partial(run, rank) for rank in range(processes)]

    return work


RECORDS, SHARD = 400, 7  # of the code store, and of each of its shards


def records(numbers: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Records of a made-up set, each a function of its number."""
    maps = [numbers.view(-1, 1, 1) * 7 + torch.arange(n * n).view(1, n, n) * 11 for n in (4, 8)]
    return [codes % 300 for codes in maps], numbers % 3


def write_records(place: Path, out: Path, resume: bool) -> list[Work]:
    """Two processes that write one code store."""

    def encode(first: int, stop: int) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        yield from map(records, torch.arange(first, stop).split(5))

    return [
        partial(
            write_codes,
            out,
            encode,
            RECORDS,
            300,
            ((4, 4), (8, 8)),
            class_names="abc",
            rank=rank,
            world_size=2,
            shard_bytes=SHARD * (2 * 16 + 2 * 64 + 4),
        )
        for rank in range(2)
    ]


def runs_done(out: Path) -> set[object]:
    """The steps that the newest checkpoint of a run, or of each run in a folder, has behind it."""
    done: set[object] = set()
    for checkpoints in out.rglob("checkpoints"):
        run = checkpoints.parent
        for folder in [*checkpoints.glob("step-*"), *run.glob("best")]:
            assert (folder / "files.json").exists(), folder
            check_sums(folder)
        newest = latest(run)
        steps = load_training(newest).state["step"] if newest else 0
        done |= {(run.name, step) for step in range(steps)}
    return done


def stores_done(out: Path) -> set[object]:
    """The records of a code store, or of each store in a folder."""
    done: set[object] = set()
    for manifest in out.rglob(MANIFEST):
        for report in verify(manifest.parent):
            assert not report.problem, report.problem
        positions = CodeStore(manifest.parent).positions.tolist()
        done |= {(manifest.parent.name, number) for number in positions}
    return done


def records_done(out: Path) -> set[object]:
    """The made-up records of a code store, which must be the right ones."""
    done = stores_done(out)
    if done:
        store = CodeStore(out)
        codes, labels = store.batch(torch.arange(len(store)))
        expected, expected_labels = records(store.positions)
        assert all(map(torch.equal, [*codes, labels], [*expected, expected_labels])), out
    return done


def samples_done(out: Path) -> set[object]:
    """The samples of a folder's index."""
    rows = list(read_index(out)) if (out / "samples.jsonl").exists() else []
    missing = [row["file"] for row in rows if not (out / row["file"]).exists()]
    assert not missing, f"in the index without an image: {missing}"
    numbers = {row["sample"] for row in rows}
    assert len(numbers) == len(rows), "a sample is in the index twice"
    return numbers


def files(out: Path) -> dict[str, bytes]:
    """The bytes of each file in a folder, hidden ones included, except locks."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def demo_files(out: Path) -> dict[str, bytes]:
    """The files of a demo, whose report says whether it was resumed."""
    said = {b" since it was resumed": b"", b'"resumed": true': b'"resumed": false'}
    found = files(out)
    for name in ("metrics.json", "report.html"):
        for text, instead in said.items():
            found[name] = found[name].replace(text, instead)
    return found


def joined_records(out: Path) -> dict[str, bytes]:
    """The records of a store, because its shards depend on which process wrote them when."""
    found = files(out)
    rest = {name: data for name, data in found.items() if not name.startswith("shard-")}
    shards = sorted(found.keys() - rest.keys())
    return rest | {MANIFEST: b"", "shards": b"".join(found[name] for name in shards)}


SAMPLE = "sample --pipeline @pipeline --n 40 --batch-size 4"
TUNE = (
    "finetune-decoder --vqvae @pipeline --data emoji --flip --lpips-weight 0 "
    "--adversary.channels 8 --adversary.start 4 --adversary.ramp 2 --train.steps 18 "
    "--train.batch-size 8 --train.log-every 1 --train.validate-every 3 --train.save-every 2 "
    "--train.keep 3"
)
SUBJECTS = {
    "train-vqvae": Subject(command("train-vqvae --data emoji"), runs_done, files),
    "train-prior-top": Subject(command("train-prior --level top --codes @codes"), runs_done, files),
    "train-prior-bottom": Subject(
        command("train-prior --level bottom --codes @codes"), runs_done, files
    ),
    "train-classifier": Subject(command("train-classifier --data emoji --flip"), runs_done, files),
    "finetune-decoder": Subject(command(TUNE), runs_done, files),
    "extract": Subject(
        command("extract --vqvae @pipeline --data emoji --shard-records 20"), stores_done, files
    ),
    "store": Subject(write_records, records_done, joined_records),
    "sample": Subject(command(SAMPLE), samples_done, files),
    "sample-by-two": Subject(command(SAMPLE, processes=2), samples_done, files),
    "compress": Subject(
        # In a folder: what is left unfinished next to the file would be seen.
        lambda place, out, resume: command("compress emoji --pipeline @pipeline", resumes=False)(
            place, out / "emoji.vq2", resume
        ),
        lambda out: set(),
        files,
    ),
    "demo": Subject(command("demo"), lambda out: runs_done(out) | stores_done(out), demo_files),
}
