"""The training loop: the same run twice, resumed, diverged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from helpers.codes import CodeSet
from helpers.models import SMALL_PRIOR, SMALL_VQVAE
from safetensors.torch import load_file, save_file

from vqvae2_fast.checkpoints.checkpoint import load
from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.console import Progress
from vqvae2_fast.data import CodeStore, ImageTensorDataset, in_order
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.training import DivergedError, TrainConfig, loop, prior_stage, train, vqvae_stage
from vqvae2_fast.training.state import _as_moment

CONFIG = TrainConfig(
    steps=8,
    batch_size=4,
    learning_rate=1e-2,
    warmup_steps=2,
    average_decay=0.9,
    log_every=2,
    validate_every=4,
    save_every=4,
)
QUIET = Progress(quiet=True)
STORES = TemporaryDirectory()


def images(count: int = 13) -> ImageTensorDataset:
    generator = torch.Generator().manual_seed(5)
    return ImageTensorDataset(
        torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    )


@cache
def codes(count: int = 13) -> CodeStore:
    generator = torch.Generator().manual_seed(6)
    maps = [torch.randint(8, (count, side, side), generator=generator) for side in (2, 4)]
    labels = torch.randint(-1, 3, (count,), generator=generator)
    return CodeSet(maps, 8, labels, ("a", "b", "c")).write(Path(STORES.name) / str(count))


def stage_one(config: TrainConfig):
    torch.manual_seed(0)
    return vqvae_stage(VQVAE2(SMALL_VQVAE), images(), images(5), config, flip=True)


def stage_two(config: TrainConfig):
    torch.manual_seed(0)
    return prior_stage(
        PixelSNAIL(SMALL_PRIOR), codes(), codes(5), config, level=1, label_dropout=0.3
    )


STAGES = pytest.mark.parametrize("make", [stage_one, stage_two], ids=["vqvae", "prior"])


def assert_equal(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for (name, one), other in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@STAGES
def test_two_runs_with_one_seed_are_equal(make):
    runs = []
    for noise in (1, 2):
        stage = make(CONFIG)
        torch.manual_seed(noise)  # what the caller drew before must not matter
        train(stage, CONFIG, progress=QUIET)
        runs.append(stage.model)
    assert_equal(*runs)


@STAGES
def test_another_seed_gives_another_run(make):
    weights = []
    for seed in (0, 1):
        config = replace(CONFIG, seed=seed)
        stage = make(config)
        train(stage, config, progress=QUIET)
        weights.append(torch.cat([w.flatten() for w in stage.model.parameters()]))
    assert not torch.equal(*weights)


@STAGES
def test_a_resumed_run_equals_an_unbroken_one(make, tmp_path):
    unbroken = make(CONFIG)
    whole = train(unbroken, CONFIG, out=tmp_path / "whole", progress=QUIET)

    class Cut(Exception):
        pass

    stage = make(CONFIG)
    inner, calls = stage.loss, []

    def loss(model, batch):
        calls.append(None)
        if len(calls) == 7:  # after the checkpoint of step 4, within the steps to the next
            raise Cut
        return inner(model, batch)

    with pytest.raises(Cut):
        train(replace(stage, loss=loss), CONFIG, out=tmp_path / "parts", progress=QUIET)
    resumed = make(CONFIG)
    parts = train(resumed, CONFIG, out=tmp_path / "parts", resume=True, progress=QUIET)

    assert_equal(unbroken.model, resumed.model)
    assert whole.metrics == parts.metrics
    logs = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / run / "log.jsonl").read_text().splitlines()
        ]
        for run in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


def test_the_steps_of_a_run_can_be_corrected_as_it_goes(tmp_path):
    asked = []

    def replan(step: int) -> int:
        asked.append(step)
        return 5

    config = replace(CONFIG, steps=100, log_every=2)
    trained = train(stage_one(config), config, out=tmp_path, replan=replan)
    assert asked == [2, 4]
    assert trained.log[-1]["step"] == 5
    state = json.loads((latest(tmp_path) / "state.json").read_text())
    assert state["train"]["steps"] == 5


def test_resume_with_fewer_steps_than_are_done_is_refused(tmp_path):
    train(stage_one(CONFIG), CONFIG, out=tmp_path, progress=QUIET)
    config = replace(CONFIG, steps=7)
    with pytest.raises(ValueError, match="expected steps=8 or more.* got 7"):
        train(stage_one(config), config, out=tmp_path, resume=True, progress=QUIET)


def test_a_run_that_was_stopped_at_its_last_step_is_validated(tmp_path):
    config = replace(CONFIG, save_every=5, keep=9)
    train(stage_one(config), config, out=tmp_path, progress=QUIET)
    for later in tmp_path.glob("checkpoints/step-*[678]"):
        shutil.rmtree(later)
    short = replace(config, steps=5)
    result = train(stage_one(short), short, out=tmp_path, resume=True, progress=QUIET)
    model = load(tmp_path)
    stage = vqvae_stage(model, images(), images(5), short)
    assert result.metrics == stage.validate(model)
    found = result.metrics[stage.headline]
    assert result.best is not None
    assert result.best["value"] >= found  # the PSNR
    # The record says so too: a second resumption has nothing left to measure.
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["step"], last[f"val_{stage.headline}"]) == (5, found)
    again = train(stage_one(short), short, out=tmp_path, resume=True, progress=QUIET)
    assert again == result
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines


def test_resume_with_another_model_names_what_differs(tmp_path):
    train(stage_one(CONFIG), CONFIG, out=tmp_path, progress=QUIET)
    other = vqvae_stage(
        VQVAE2(replace(SMALL_VQVAE, hidden_channels=10)), images(), images(5), CONFIG
    )
    with pytest.raises(ValueError, match=r"made with hidden_channels 8, not 10\. Repeat"):
        train(other, CONFIG, out=tmp_path, resume=True, progress=QUIET)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "muon"])
def test_resume_without_a_moment_of_a_weight_is_refused(optimizer, tmp_path):
    config = replace(CONFIG, optimizer=optimizer)
    train(stage_one(config), config, out=tmp_path, progress=QUIET)
    path = latest(tmp_path) / "optimizer.safetensors"
    moments = load_file(path)
    name = next(name for name, moment in moments.items() if moment.ndim == 4)
    moments[name.rpartition(".")[0] + ".other"] = moments.pop(name)
    save_file(moments, path)
    (path.parent / "files.json").unlink()
    with pytest.raises(ValueError, match=f"holds .*other.* but {optimizer} keeps"):
        train(stage_one(config), config, out=tmp_path, resume=True, progress=QUIET)


def test_resume_with_another_batch_size_is_refused(tmp_path):
    train(stage_one(CONFIG), CONFIG, out=tmp_path, progress=QUIET)
    config = replace(CONFIG, batch_size=5)
    with pytest.raises(ValueError, match="global_batch=4, got 5"):
        train(stage_one(config), config, out=tmp_path, resume=True, progress=QUIET)


def diverging(stage):
    """The stage, whose loss is NaN in step 7."""
    inner, calls = stage.loss, []

    def loss(model, batch):
        calls.append(None)
        value, parts = inner(model, batch)
        return (value * float("nan") if len(calls) == 7 else value), parts

    return replace(stage, loss=loss)


@STAGES
def test_a_loss_of_nan_stops_and_keeps_the_last_good_checkpoint(make, tmp_path):
    stage = diverging(make(CONFIG))
    with pytest.raises(DivergedError, match="step 7 gave loss nan(.|\n)*step-000000004"):
        train(stage, CONFIG, out=tmp_path, progress=QUIET)
    kept = latest(tmp_path)
    assert kept is not None and kept.name == "step-000000004"
    assert all(weight.isfinite().all() for weight in load(kept).parameters())


def test_a_loss_of_nan_between_two_checks_shows_at_the_last_step(monkeypatch):
    stage = diverging(stage_two(CONFIG))
    # As on a GPU, where values are looked at only where they are logged.
    config = replace(CONFIG, log_every=20)
    monkeypatch.setattr(loop, "_steps_between_checks", lambda device, config: config.log_every)
    with pytest.raises(DivergedError):
        train(stage, config, progress=QUIET)


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    stage = stage_two(CONFIG)
    weight = stage.model.head.bias

    def loss(model, batch):
        return (weight - weight.detach()).abs().sqrt().sum(), {}  # 0, with the slope inf · 0

    with pytest.raises(DivergedError, match="gradient norm .*or max_grad_norm"):
        train(replace(stage, loss=loss), CONFIG, progress=QUIET)
    assert weight.isfinite().all()


def test_accumulated_micro_batches_give_the_gradient_of_one_batch():
    weights = []
    for accumulate, batch_size in ((1, 12), (3, 4)):
        config = replace(
            CONFIG,
            steps=1,
            warmup_steps=0,
            accumulate=accumulate,
            batch_size=batch_size,
            average_decay=0.0,
            max_grad_norm=0.0,
        )
        torch.manual_seed(0)
        prior = PixelSNAIL(replace(SMALL_PRIOR, dropout=0.0, attention_dropout=0.0))
        stage = prior_stage(prior, codes(), codes(5), config, level=1, label_dropout=0.0)
        gradients = []
        hook = prior.head.bias.register_post_accumulate_grad_hook(
            lambda parameter, gradients=gradients: gradients.append(parameter.grad.clone())
        )
        train(stage, config, progress=QUIET)
        hook.remove()
        weights.append(gradients[-1])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_the_model_ends_with_its_average(tmp_path):
    stage = stage_two(CONFIG)
    train(stage, CONFIG, out=tmp_path, progress=QUIET)
    assert_equal(stage.model, load(tmp_path))


def test_only_the_newest_checkpoints_stay(tmp_path):
    config = replace(CONFIG, save_every=2, keep=2)
    train(stage_one(config), config, out=tmp_path, progress=QUIET)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000006", "step-000000008"]


def test_training_leaves_the_callers_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    stage = stage_two(CONFIG)
    torch.set_rng_state(before)
    train(stage, CONFIG, progress=QUIET)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_lowers_the_loss():
    config = replace(CONFIG, steps=60, average_decay=0.0, validate_every=60)
    torch.manual_seed(0)
    colours = torch.randint(256, (13, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, 8, 8)
    plain = ImageTensorDataset(colours.contiguous())
    log = train(vqvae_stage(VQVAE2(SMALL_VQVAE), plain, plain, config), config, progress=QUIET).log
    losses = [line["reconstruction"] for line in log if "reconstruction" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_codebooks_move_once_a_step_whatever_the_micro_batches():
    config = replace(CONFIG, steps=3, accumulate=2, average_decay=0.0)
    stage = stage_one(config)
    train(stage, config, progress=QUIET)
    assert [int(quantizer.steps) for quantizer in stage.model.quantizers] == [3, 3]


def test_dropped_labels_are_the_class_without_a_name():
    config = replace(CONFIG, steps=1)
    torch.manual_seed(0)
    prior = PixelSNAIL(SMALL_PRIOR)
    seen = []
    prior.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[3]))
    stage = prior_stage(prior, codes(), codes(5), config, level=1, label_dropout=0.999)
    stage.loss(prior, next(stage.batches(0)))
    assert seen[0].tolist() == [3, 3, 3, 3]


@STAGES
def test_the_loss_of_a_stage_runs_through_the_forward_of_a_wrapper(make):
    class Wrapper(torch.nn.Module):
        """Like DistributedDataParallel, this has only forward and the parameters."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = [inner], 0
            self.weights = torch.nn.ParameterList(inner.parameters())

        def forward(self, *arguments, **keywords):
            self.calls += 1
            return self.inner[0](*arguments, **keywords)

    losses = []
    for wrap in (lambda model: model, Wrapper):
        stage = make(CONFIG)
        network = wrap(stage.model)
        torch.manual_seed(1)
        losses.append(stage.loss(network, next(stage.batches(0)))[0])
    assert network.calls == 1
    assert torch.equal(*losses)


@STAGES
@pytest.mark.parametrize(("items", "seen"), [(0, 5), (3, 3), (9, 5)])
def test_a_validation_takes_as_many_items_as_are_asked_for(make, items, seen):
    stage = make(replace(CONFIG, validate_items=items, batch_size=1))
    sizes = []
    model = stage.model.eval()
    first = model.encoders[0] if isinstance(model, VQVAE2) else model.stem
    first.register_forward_hook(lambda _, arguments, out: sizes.append(len(arguments[0])))
    stage.validate(model)
    assert sum(sizes) == seen


def test_a_validation_keeps_no_batch_of_images(monkeypatch):
    held, alive = [], []

    def watched(*arguments, **keywords):
        for batch, labels in in_order(*arguments, **keywords):
            held.append(weakref.ref(batch))
            alive.append(sum(ref() is not None for ref in held))
            yield batch, labels

    monkeypatch.setattr("vqvae2_fast.training.stage1.in_order", watched)
    config = replace(CONFIG, batch_size=1)
    stage = vqvae_stage(VQVAE2(SMALL_VQVAE), images(), images(40), config)
    stage.validate(stage.model.eval())
    assert len(alive) == 10
    assert max(alive) <= 2  # this one, and the one before until the loop drops it


def test_all_of_a_fused_optimiser_is_continued_on_the_device_of_its_weights():
    """Its kernels read the counts of steps, too."""
    weight = torch.empty(2, device="meta")
    assert _as_moment(torch.tensor(3.0), weight).device == weight.device


def test_images_of_another_size_are_refused_by_name():
    with pytest.raises(ValueError, match=r"held_out to be .* \[3, 8, 8\].* got \[3, 4, 4\]"):
        small = ImageTensorDataset(torch.zeros(4, 3, 4, 4, dtype=torch.uint8))
        vqvae_stage(VQVAE2(SMALL_VQVAE), images(), small, CONFIG)


def test_another_training_in_the_process_is_refused():
    def meanwhile(step, values):
        with pytest.raises(RuntimeError, match="another training runs in this process"):
            train(stage_two(CONFIG), CONFIG, progress=QUIET)

    train(stage_one(CONFIG), CONFIG, progress=QUIET, on_log=meanwhile)
    train(stage_two(CONFIG), CONFIG, progress=QUIET)


def test_weights_that_no_checkpoint_can_hold_are_refused(tmp_path):
    torch.manual_seed(0)
    prior = PixelSNAIL(SMALL_PRIOR).double()
    stage = prior_stage(prior, codes(), codes(), CONFIG, level=1)
    with pytest.raises(TypeError, match=r"float32, .* in float64\. Call model\.float\(\)"):
        train(stage, CONFIG, out=tmp_path / "run", progress=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_while_another_trains_can_train():
    ends = []

    def meanwhile(step, values):
        child = os.fork()
        if not child:
            signal.alarm(60)
            try:
                train(stage_two(CONFIG), CONFIG, progress=QUIET)
            except BaseException:
                os._exit(1)
            os._exit(0)
        ends.append(os.waitpid(child, 0)[1])

    one = replace(CONFIG, steps=1)
    train(stage_one(one), one, progress=QUIET, on_log=meanwhile)
    assert set(ends) == {0}
