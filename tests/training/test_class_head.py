"""The head that reads the class from the top codes: it learns, trains the codes, and resumes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.models import SMALL_VQVAE

from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training import TrainConfig, train, vqvae_stage
from vqvae2_fast.training.companions import (
    Adversary,
    AdversarySettings,
    ClassHead,
    ClassHeadSettings,
)

VQVAE = replace(SMALL_VQVAE, image_size=(16, 16))
CONFIG = TrainConfig(
    steps=4, batch_size=8, learning_rate=1e-3, warmup_steps=0, validate_every=2, save_every=2
)
SETTINGS = ClassHeadSettings(weight=0.1, channels=8)
QUIET = Progress(quiet=True)


def images(names: tuple[str, ...] = ("dark", "light"), count: int = 16) -> ImageTensorDataset:
    labels = torch.arange(count) % 2
    noise = torch.randint(100, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    pixels = (noise + 120 * labels[:, None, None, None]).to(torch.uint8)
    if not names:
        return ImageTensorDataset(pixels)
    return ImageTensorDataset(pixels, labels, class_names=names)


def stage_of(config: TrainConfig = CONFIG, settings=SETTINGS, **options):
    torch.manual_seed(0)
    model = VQVAE2(VQVAE)
    head = ClassHead(model, 2, settings, config.seed)
    return vqvae_stage(model, images(), images(), config, class_head=head, **options)


def test_the_head_learns_to_read_the_class():
    config = replace(CONFIG, steps=100, log_every=100, validate_every=100)
    log = train(stage_of(config, ClassHeadSettings(weight=0.1)), config, progress=QUIET).log
    assert log[0]["class"] < 0.1
    assert log[0]["class_accuracy"] == 1


def test_its_gradient_reaches_the_top_encoder_by_its_weight():
    gradients = []
    for weight in (1e-6, 0.1, 0.2):
        stage = stage_of(settings=replace(SETTINGS, weight=weight))
        stage.model.train()
        batch = next(stage.batches(0))
        stage.loss(stage.model, batch)[0].backward()
        gradients.append(stage.model.pre_quantize[0].weight.grad)
    without, once, twice = gradients
    assert not torch.allclose(once, without)
    torch.testing.assert_close(twice - without, 2 * (once - without), rtol=1e-3, atol=1e-6)


def test_the_head_moves_the_same_whatever_its_weight():
    weights = []
    for weight in (0.01, 0.1):
        stage = stage_of(settings=replace(SETTINGS, weight=weight))
        stage.model.train()
        stage.loss(stage.model, next(stage.batches(0)))[0].backward()
        stage.companion.step()
        weights.append(stage.companion.network.head.weight)
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("cut", [(4, 2), (2, 4), (1, 8)], ids=str)
def test_micro_batches_change_a_step_by_rounding_only(cut):
    model = replace(VQVAE, quantize_after=0)
    states = []
    for batch_size, accumulate in ((8, 1), cut):
        config = replace(CONFIG, batch_size=batch_size, accumulate=accumulate, optimizer="momentum")
        torch.manual_seed(0)
        vqvae = VQVAE2(model)
        head = ClassHead(vqvae, 2, replace(SETTINGS, weight=1.0), 0)
        stage = vqvae_stage(vqvae, images(), images(), config, class_head=head)
        train(stage, config, progress=QUIET)
        states.append({**vqvae.state_dict(), **head.network.state_dict()})
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_what_it_reads_has_a_deviation_of_one():
    stage = stage_of()
    train(stage, replace(CONFIG, steps=2), progress=QUIET)
    read = []
    stem = stage.companion.network.stem
    stem.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    stage.loss(stage.model.train(), next(stage.batches(1)))
    assert float(read[0].detach().std()) == pytest.approx(1, rel=0.1)


def test_a_checkpoint_of_before_the_spread_is_continued():
    head, tensors = stage_of().companion, stage_of().companion.tensors()
    del tensors["network.spread"]
    head.take(tensors)
    assert head.network.spread == 1


def test_a_run_resumes_bit_for_bit(tmp_path):
    # The rate of a step depends on the number of steps, unless it is constant.
    config = replace(CONFIG, final_learning_rate=1.0)
    whole, cut, again = stage_of(), stage_of(), stage_of()
    train(whole, config, out=tmp_path / "whole", progress=QUIET)
    train(cut, replace(config, steps=2), out=tmp_path / "cut", progress=QUIET)
    train(again, config, out=tmp_path / "cut", resume=True, progress=QUIET)
    for pair in ((whole.model, again.model), (whole.companion.network, again.companion.network)):
        one, other = (part.state_dict() for part in pair)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_weight_is_another_run(tmp_path):
    train(stage_of(), CONFIG, out=tmp_path, progress=QUIET)
    other = stage_of(settings=replace(SETTINGS, weight=0.2))
    with pytest.raises(ValueError, match=r"made with class_head.weight=0.1, got 0.2: "):
        train(other, replace(CONFIG, steps=6), out=tmp_path, resume=True, progress=QUIET)


def test_images_without_classes_are_refused():
    model = VQVAE2(VQVAE)
    with pytest.raises(ValueError, match="two or more classes, got 0"):
        ClassHead(model, 0, SETTINGS, 0)
    head = ClassHead(model, 2, SETTINGS, 0)
    with pytest.raises(ValueError, match="expected a label for every image, 16 of 16 have none"):
        vqvae_stage(model, images(()), images(()), CONFIG, class_head=head)


@pytest.mark.parametrize(
    "moment",
    [torch.zeros(()), torch.zeros(3), torch.zeros(8, 4, 3, 3, dtype=torch.float64), None],
    ids=["number", "vector", "float64", "missing"],
)
def test_moments_of_other_weights_are_refused(moment):
    # Otherwise the next step would fail, or spread one number over a whole weight.
    stage = stage_of()
    stage.loss(stage.model, next(stage.batches(0)))[0].backward()
    stage.companion.step()
    tensors = stage.companion.tensors()
    name = next(name for name in tensors if name.startswith("exp_avg.") and tensors[name].ndim == 4)
    del tensors[name]
    if moment is not None:
        tensors[name] = moment
    with pytest.raises(ValueError, match="the run's class head has other layers"):
        stage_of().companion.take(tensors)


def test_it_does_not_go_with_a_discriminator():
    adversary = Adversary(VQVAE2(VQVAE), AdversarySettings(weight=0.1, channels=8), 0)
    with pytest.raises(ValueError, match=r"got both: adversary.weight=0.1 and class_head.weight"):
        stage_of(adversary=adversary)


def test_it_trains_in_one_process(monkeypatch):
    stage = stage_of()
    monkeypatch.setattr(Ranks, "of_group", lambda: Ranks(0, 2))
    with pytest.raises(NotImplementedError, match="a class head trains in one process, got 2"):
        train(stage, CONFIG, progress=QUIET)
