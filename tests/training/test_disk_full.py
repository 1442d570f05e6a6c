"""A disk that becomes full while a run writes: the old files stay whole, and the run can
continue."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.models import TINY_VQVAE
from PIL import Image

from vqvae2_fast.checkpoints import files, load, load_training
from vqvae2_fast.checkpoints.checkpoint import save_training
from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.commands.common import write_result
from vqvae2_fast.console import Progress
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.report import write_report
from vqvae2_fast.report.curves import plot_curves
from vqvae2_fast.report.pictures import write_picture
from vqvae2_fast.training import Stage, TrainConfig, train

CONFIG = TrainConfig(
    steps=4,
    batch_size=1,
    learning_rate=1e-2,
    warmup_steps=0,
    log_every=1,
    validate_every=4,
    save_every=2,
    average_decay=0.9,
)
QUIET = Progress(quiet=True)
FULL = "No space left|File too large"


def stage() -> Stage:
    torch.manual_seed(0)
    model = VQVAE2(TINY_VQVAE)
    return Stage(
        name="train",
        model=model,
        batches=lambda first: iter(range(first, 1000)),
        loss=lambda model, batch: (sum(w.square().sum() for w in model.parameters()), {}),
        validate=lambda model: {"bits": 1.0},
        headline="bits",
    )


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before_and_the_run_goes_on(small_disk):
    run = small_disk.folder / "run"
    whole, parts = stage(), stage()
    train(whole, CONFIG, progress=QUIET)

    def loss(model, batch):
        if batch == 3:
            small_disk.fill(8 * 1024)  # a line of the log, not a checkpoint
        return stage_loss(model, batch)

    stage_loss = parts.loss
    with pytest.raises(OSError, match=rf"cannot write \S*step-000000004: .*({FULL})"):
        train(replace(parts, loss=loss), CONFIG, out=run, progress=QUIET)
    small_disk.clear()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000002"]
    assert load_training(run).state["step"] == 2
    resumed = stage()
    train(resumed, CONFIG, out=run, resume=True, progress=QUIET)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("leave", [0, 4096, 12 * 1024, 24 * 1024])
def test_a_full_disk_at_any_file_of_a_checkpoint_leaves_the_old_one(small_disk, leave):
    model = stage().model
    path = small_disk.folder / "checkpoint"
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    moments = {f"{name}.exp_avg": weight for name, weight in weights.items()}
    parts = {"optimizer": moments, "average": weights}
    save_training(path, model, state={"step": 1, "train": {}, "metrics": {}}, **parts)
    small_disk.fill(leave)
    with pytest.raises(OSError, match=FULL):
        # The text is the last file, and larger than what is left.
        state = {"step": 2, "train": {}, "metrics": {}, "note": "x" * 32 * 1024}
        save_training(path, model, state=state, **parts)
    small_disk.clear()
    assert [entry.name for entry in small_disk.folder.iterdir()] == ["checkpoint"]
    assert load_training(path).state["step"] == 1


def test_a_best_that_finds_no_room_is_made_on_resume(small_disk, monkeypatch):

    run = small_disk.folder / "run"
    real = files.os.link

    def full(*_):
        small_disk.fill(0)
        raise OSError("no links here")

    monkeypatch.setattr(files.os, "link", full)
    with pytest.raises(OSError, match=FULL):
        train(stage(), CONFIG, out=run, progress=QUIET)
    small_disk.clear()
    assert latest(run).name == "step-000000004"
    assert not (run / "best").exists()
    monkeypatch.setattr(files.os, "link", real)
    train(stage(), CONFIG, out=run, resume=True, progress=QUIET)
    assert load(run / "best").config == stage().model.config


@pytest.mark.parametrize("name", ["curves", "image", "page", "result"])
def test_a_picture_page_or_result_that_finds_no_room_leaves_the_old_one(small_disk, name):
    def write(steps):
        if name == "curves":
            log = [{"step": step, "loss": 0.1, "val_bits_per_code": 2} for step in range(1, steps)]
            plot_curves(small_disk.folder / name, priors={"top": log})
        elif name == "image":
            noise = torch.randint(256, (steps, 99, 3), dtype=torch.uint8).numpy()
            write_picture(small_disk.folder / name, Image.fromarray(noise))
        elif name == "result":
            write_result(small_disk.folder / name, {"psnr": 26.5, "note": "x" * 300 * steps})
        else:
            write_report(small_disk.folder / name, "Runs", "x" * 300 * steps, [], "")

    write(30)
    before = (small_disk.folder / name).read_bytes()
    small_disk.fill(0)
    with pytest.raises(OSError, match=rf"cannot write \S*/{name}: ({FULL})"):
        write(60)
    small_disk.clear()
    assert (small_disk.folder / name).read_bytes() == before
    assert [entry.name for entry in small_disk.folder.iterdir()] == [name]
