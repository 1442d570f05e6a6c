"""What a run keeps: the newest checkpoints and the best one; and what a resumed run repairs."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.models import TINY_PRIOR
from torch import nn

from vqvae2_fast.checkpoints import load
from vqvae2_fast.checkpoints.locate import checkpoints_of, latest
from vqvae2_fast.console import Progress
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.runs import InterruptedRun
from vqvae2_fast.runs.folder import (
    check_run_folder,
    clear_run,
    locked_run,
    remove_old,
    set_newer_aside,
)
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training import Stage, TrainConfig, train

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = TrainConfig(
    steps=8,
    batch_size=1,
    learning_rate=1e-2,
    warmup_steps=0,
    log_every=1,
    validate_every=2,
    save_every=4,
    keep=2,
)
QUIET = Progress(quiet=True)


def stage(figures: list[float], *, lower: bool = True) -> Stage:
    """A run whose validations give these figures, one after the other."""
    torch.manual_seed(0)
    prior = PixelSNAIL(TINY_PRIOR)
    left = list(figures)
    return Stage(
        name="train",
        model=prior,
        batches=lambda first: iter(range(first, 1000)),
        loss=lambda model, batch: (sum(w.square().sum() for w in model.parameters()), {}),
        validate=lambda model: {"bits": left.pop(0)},
        headline="bits",
        lower_is_better=lower,
    )


def kept(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


def state(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text())


@pytest.mark.parametrize(
    ("figures", "lower", "best"),
    [
        ([3, 1, 2, 2], True, 4),
        ([3, 1, 2, 2], False, 2),
        ([1, 1, 1, 1], True, 2),
        ([float("nan"), 5, float("nan"), 6], True, 4),
        ([4, 3, 2, 1], True, 8),
    ],
    ids=["lowest", "highest", "first of equals", "never nan", "last"],
)
def test_the_best_checkpoint_stays_beside_the_newest(tmp_path, figures, lower, best):
    train(stage(figures, lower=lower), CONFIG, out=tmp_path, progress=QUIET)
    assert kept(tmp_path)[-1] == 8
    assert len(kept(tmp_path)) == 2
    record = state(tmp_path / "best")["best"]
    assert record == {"step": best, "metric": "bits", "value": figures[best // 2 - 1]}
    assert state(tmp_path / "best")["step"] == best
    assert state(tmp_path / "checkpoints" / "step-000000008")["best"] == record
    assert isinstance(load(tmp_path / "best"), nn.Module)


def test_a_validation_that_is_the_best_is_saved_though_no_checkpoint_is_due(tmp_path):
    train(stage([4, 3, 5, 6]), replace(CONFIG, keep=9), out=tmp_path, progress=QUIET)
    assert kept(tmp_path) == [2, 4, 8]


def test_the_best_costs_no_space_while_its_step_is_there(tmp_path):
    train(stage([4, 3, 2, 1]), CONFIG, out=tmp_path, progress=QUIET)
    names = ("model.safetensors", "state.json")
    for name in names:
        assert (tmp_path / "best" / name).samefile(tmp_path / "checkpoints/step-000000008" / name)


def cut(figures: list[float], run: Path, after: int) -> None:
    """A run that ends after this many steps without doing anything else."""
    one = stage(figures)
    steps = iter(range(after))
    inner = one.loss

    def loss(model, batch):
        if next(steps, None) is None:
            raise ConnectionError
        return inner(model, batch)

    with pytest.raises(ConnectionError):
        train(replace(one, loss=loss), CONFIG, out=run, progress=QUIET)


def test_a_resumed_run_remembers_the_best(tmp_path):
    cut([3, 1, 2], tmp_path, after=7)
    train(stage([2, 1.5]), CONFIG, out=tmp_path, resume=True, progress=QUIET)
    assert state(tmp_path / "best")["best"]["value"] == 1
    assert state(latest(tmp_path))["best"]["step"] == 4


def test_a_best_that_was_not_linked_before_a_kill_is_linked_on_resume(tmp_path):
    cut([3, 1, 2], tmp_path, after=5)
    for file in (tmp_path / "best").iterdir():
        file.unlink()
    (tmp_path / "best").rmdir()
    train(stage([2, 1.5]), CONFIG, out=tmp_path, resume=True, progress=QUIET)
    assert state(tmp_path / "best")["step"] == 4


def test_a_run_that_goes_back_takes_its_best_back_with_it(tmp_path):
    train(stage([3, 2, 1, 0]), replace(CONFIG, keep=9), out=tmp_path, progress=QUIET)
    for step in (6, 8):
        folder = tmp_path / "checkpoints" / f"step-{step:09d}"
        folder.rename(folder.with_name(f"{folder.name}.damaged"))
    train(stage([7, 8]), replace(CONFIG, keep=9), out=tmp_path, resume=True, progress=QUIET)
    assert state(tmp_path / "best")["best"] == {"step": 4, "metric": "bits", "value": 2}


def test_a_best_linked_to_a_damaged_checkpoint_is_linked_to_the_repeated_one(tmp_path):
    # The checkpoint before the last knows only a best step whose folder is gone.
    train(stage([2, 3, 4, 1]), CONFIG, out=tmp_path, progress=QUIET)
    assert kept(tmp_path) == [4, 8]
    last = tmp_path / "checkpoints/step-000000008"
    with (last / "model.safetensors").open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    last.rename(last.with_name(f"{last.name}.damaged"))
    train(stage([4, 1]), CONFIG, out=tmp_path, resume=True, progress=QUIET)
    assert state(tmp_path / "best")["step"] == 8
    load(tmp_path / "best")


@pytest.mark.parametrize("items", [0, 5])
def test_a_record_on_other_held_out_items_is_given_up(tmp_path, items):
    train(stage([3, 1]), replace(CONFIG, steps=4), out=tmp_path, progress=QUIET)
    config = replace(CONFIG, validate_items=items)
    train(stage([7, 8]), config, out=tmp_path, resume=True, progress=QUIET)
    assert state(tmp_path / "best")["step"] == (6 if items else 4)


def test_overwriting_a_run_removes_its_results(tmp_path):
    train(stage([4, 3, 2, 1]), CONFIG, out=tmp_path, progress=QUIET)
    results = [tmp_path / name for name in ("result.json", "curves.png", "reconstructions.png")]
    for file in results:
        file.touch()
    train(stage([4, 3, 2, 1]), CONFIG, out=tmp_path, overwrite=True, progress=QUIET)
    assert not any(file.exists() for file in results)


def test_a_restart_from_an_older_checkpoint_keeps_what_it_saves(tmp_path, monkeypatch):
    train(stage([4, 3, 2, 1]), CONFIG, out=tmp_path, progress=QUIET)
    with (tmp_path / "checkpoints/step-000000008/model.safetensors").open("ab") as file:
        file.write(b"damage")
    monkeypatch.setattr(Ranks, "of_group", lambda: Ranks(restarts=1))
    train(stage([1.5]), replace(CONFIG, steps=7, keep=1), out=tmp_path, progress=QUIET)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000007", "step-000000008.damaged"]


def test_a_step_that_is_damaged_twice_leaves_both_checkpoints(tmp_path):
    for _ in range(2):
        folder = tmp_path / "checkpoints" / "step-000000004"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        set_newer_aside(tmp_path, None)
    assert checkpoints_of(tmp_path) == []
    assert len(list((tmp_path / "checkpoints").glob("step-000000004.damaged*"))) == 2


def test_what_killed_writers_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    cut([3, 1, 2], tmp_path, after=5)
    dead = tmp_path / "checkpoints" / ".step-000000009.0123.part"
    dead.mkdir()
    (dead / "config.json").write_text("{")
    train(stage([2, 1.5]), CONFIG, out=tmp_path, resume=True, progress=QUIET)
    assert not dead.exists()
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock"]


def test_an_old_checkpoint_is_hidden_before_its_files_are_deleted(tmp_path, monkeypatch):
    def killed(path, **_):
        raise SystemExit(path)

    cut([3, 1, 2], tmp_path, after=7)
    monkeypatch.setattr("vqvae2_fast.files.durable.shutil.rmtree", killed)
    with pytest.raises(SystemExit, match=r"/\.step-000000002\.\S*\.part"):
        remove_old(tmp_path, keep=1)
    names = [path.name for path in (tmp_path / "checkpoints").glob("step-*")]
    assert names == ["step-000000004"]


def test_a_run_is_not_begun_over_another(tmp_path):
    cut([3, 1, 2], tmp_path, after=5)
    with pytest.raises(ValueError, match="holds a run already. Continue it with resume,"):
        train(stage([1]), CONFIG, out=tmp_path, progress=QUIET)


def _wait(ready, end) -> None:
    ready.set()
    end.wait(60)


def _hold(run: Path, ready, end) -> None:
    with locked_run(run):
        _wait(ready, end)


@pytest.mark.parametrize("deleted", [False, True], ids=["lock", "lock_deleted"])
def test_two_processes_cannot_train_in_one_folder(tmp_path, deleted):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, end))
    other.start()
    try:
        assert ready.wait(60)
        if deleted:
            (tmp_path / ".lock").unlink()
        with pytest.raises(RuntimeError, match="another process is training in"):
            train(stage([3, 1, 2, 2]), CONFIG, out=tmp_path, progress=QUIET)
    finally:
        end.set()
        other.join()
    train(stage([3, 1, 2, 2]), CONFIG, out=tmp_path, progress=QUIET)


def test_a_workers_life_does_not_prolong_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    with locked_run(tmp_path):
        worker = context.Process(target=_wait, args=(ready, end))
        worker.start()
        assert ready.wait(60)
    try:
        with locked_run(tmp_path):
            pass
    finally:
        end.set()
        worker.join()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("elsewhere")])
def test_a_lock_that_is_no_regular_file_is_refused(tmp_path, make):
    make(tmp_path / ".lock")
    with (
        pytest.raises(ValueError, match=r"\.lock is a .*, not a regular file"),
        locked_run(tmp_path),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("config.json", "a checkpoint or pipeline"),
        ("manifest.json", "a code store"),
        ("train/manifest.json", "a folder of code stores"),
        ("held_out/manifest.json", "a folder of code stores"),
        ("samples.jsonl", "a folder of samples"),
    ],
)
def test_a_run_is_not_begun_in_the_folder_of_something_else(tmp_path, name, what):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"is {what}, not a run"):
        train(stage([1]), CONFIG, out=tmp_path, progress=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == [name.partition("/")[0]]


def test_a_run_is_not_begun_where_its_checkpoints_could_not_be_loaded(tmp_path):
    folder = tmp_path / os.fsdecode(b"n\xff")
    with pytest.raises(ValueError, match=r"n\\udcff is not UTF-8, and cannot be mapped"):
        check_run_folder(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_after_the_step_with_a_checkpoint_of_it(tmp_path, number):
    before = signal.getsignal(number)
    whole, parts = stage([3, 1, 2, 2]), stage([3])
    train(whole, CONFIG, out=tmp_path / "whole", progress=QUIET)
    inner = parts.loss

    def loss(model, batch):
        if batch == 2:
            os.kill(os.getpid(), number)
        return inner(model, batch)

    with pytest.raises(InterruptedRun, match="after step 3; .*step-000000003 holds it") as caught:
        train(replace(parts, loss=loss), CONFIG, out=tmp_path / "parts", progress=QUIET)
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before
    resumed = stage([1, 2, 2])
    train(resumed, CONFIG, out=tmp_path / "parts", resume=True, progress=QUIET)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_ctrl_c_again_after_a_second_stops_at_once(tmp_path, monkeypatch):
    one, now = stage([]), [0.0]
    monkeypatch.setattr("vqvae2_fast.runs.interrupt.time.monotonic", lambda: now[0])

    def loss(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # as a launcher passes it on
        now[0] = 2.0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt) as caught:
        train(replace(one, loss=loss), CONFIG, out=tmp_path, progress=QUIET)
    assert not isinstance(caught.value, InterruptedRun)
    assert latest(tmp_path) is None


def test_steps_of_any_length_are_ordered_as_numbers(tmp_path):
    for name in ("step-999999999", "step-1000000000", "step-000000001", "step-2x", "step--1"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "config.json").write_text("{}")
    assert latest(tmp_path).name == "step-1000000000"


@pytest.mark.parametrize("name", ["best", "checkpoints", "tensorboard"])
def test_clearing_a_run_deletes_links_to_folders_but_nothing_behind_them(tmp_path, name: str):
    run, disk = tmp_path / "run", tmp_path / "disk"
    for path in (run / "log.jsonl", run / "notes.txt", disk / "step-000000001/config.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (run / name).symlink_to(disk)
    clear_run(run)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    assert (disk / "step-000000001/config.json").exists()
