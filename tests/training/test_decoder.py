"""The decoder trained alone, and the discriminator: codes stay, runs resume, collapses stop."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.models import SMALL_VQVAE

from vqvae2_fast.checkpoints.checkpoint import load, load_training, save
from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.metrics import LPIPS
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.models.weights_hash import check_made_for, codes_hash, weights_hash
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training import DivergedError, TrainConfig, extract_codes, train, vqvae_stage
from vqvae2_fast.training.companions import Adversary, AdversarySettings, Fidelity
from vqvae2_fast.training.stage1 import decoder_stage

VQVAE = replace(SMALL_VQVAE, image_size=(16, 16))
CONFIG = TrainConfig(
    steps=4,
    batch_size=4,
    learning_rate=1e-2,
    warmup_steps=0,
    average_decay=0.9,
    validate_every=2,
    save_every=2,
)
SETTINGS = AdversarySettings(weight=0.5, start=1, ramp=1, channels=8)
QUIET = Progress(quiet=True)


def images(count: int = 12) -> ImageTensorDataset:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randint(256, (count, 3, 4, 4), generator=generator).float()
    return ImageTensorDataset(F.interpolate(coarse, scale_factor=4.0).to(torch.uint8))


def trained() -> VQVAE2:
    torch.manual_seed(0)
    model = VQVAE2(VQVAE)
    train(vqvae_stage(model, images(), images(4), CONFIG), CONFIG, progress=QUIET)
    return model


@pytest.fixture(scope="module")
def vqvae() -> VQVAE2:
    return trained()


def distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """In place of LPIPS, whose weights are large."""
    return (first - second).abs().mean((1, 2, 3))


def stage_of(model: VQVAE2, config: TrainConfig = CONFIG, settings=SETTINGS, **options):
    fidelity = Fidelity(distance, 1.0, Adversary(model, settings, config.seed))
    return decoder_stage(model, images(), images(4), config, fidelity, **options)


def test_codes_stay_and_the_decoder_learns(vqvae, tmp_path):
    model, maps = deepcopy(vqvae), extract_codes(vqvae, images(), tmp_path / "before")
    train(stage_of(model), CONFIG, out=tmp_path / "run", progress=QUIET)
    after = load(tmp_path / "run", expect=VQVAE2)
    moved = {
        name.split(".")[0]
        for name, value in vqvae.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert moved == {"decoder"}
    # Priors and stores of the old codes know the new decoder, and its own codes are the old ones.
    check_made_for(after, {"prior": maps.checkpoint_hash})
    assert extract_codes(after, images(), tmp_path / "after").checkpoint_hash == codes_hash(vqvae)
    with pytest.raises(ValueError, match="expected priors of VQ-VAE"):
        check_made_for(after, {"prior": "0" * 64})


def test_stage_one_gives_the_codes_a_name_of_their_own(vqvae):
    model = deepcopy(vqvae)
    model.vqvae_hash = "0" * 64
    vqvae_stage(model, images(), images(4), CONFIG)
    assert codes_hash(model) == weights_hash(model)


@pytest.mark.parametrize("whole", [False, True], ids=["decoder", "stage one"])
def test_a_resumed_run_is_the_unbroken_one(whole, vqvae, tmp_path):
    def run(out, steps, *, resume):
        model = deepcopy(vqvae)
        config = replace(CONFIG, steps=steps)
        # The rate of a step depends on the number of steps, unless it is constant.
        config = replace(config, final_learning_rate=1.0)
        if whole:
            adversary = Adversary(model, SETTINGS, 0)
            stage = vqvae_stage(model, images(), images(4), config, adversary=adversary)
        else:
            stage = stage_of(model, config)
        train(stage, config, out=out, resume=resume, progress=QUIET)
        return load_training(latest(out))

    unbroken = run(tmp_path / "one", 4, resume=False)
    run(tmp_path / "two", 2, resume=False)
    resumed = run(tmp_path / "two", 4, resume=True)
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert unbroken.companion is not None
    assert unbroken.companion.keys() == resumed.companion.keys()
    for name, value in unbroken.companion.items():
        assert torch.equal(value, resumed.companion[name]), name


def test_a_run_without_a_discriminator_is_not_continued_with_one(vqvae, tmp_path):
    plain = decoder_stage(deepcopy(vqvae), images(), images(4), CONFIG, Fidelity(distance, 1.0))
    train(plain, CONFIG, out=tmp_path, progress=QUIET)
    with pytest.raises(ValueError, match="without a discriminator"):
        train(stage_of(deepcopy(vqvae)), CONFIG, out=tmp_path, resume=True, progress=QUIET)


def test_a_run_is_not_continued_with_another_lpips(vqvae, tmp_path):
    def run(perceptual, name, **options):
        config, model = replace(CONFIG, steps=1, batch_size=2), deepcopy(vqvae)
        stage = decoder_stage(model, images(2), images(2), config, Fidelity(perceptual, 1.0))
        train(stage, config, out=tmp_path / name, progress=QUIET, **options)

    run(LPIPS("alexnet"), "named")
    with pytest.raises(ValueError, match="made with lpips_network=alexnet, got vgg16"):
        run(LPIPS("vgg16"), "named", resume=True)
    # An older checkpoint does not say which it was.
    run(distance, "unnamed")
    run(LPIPS("vgg16"), "unnamed", resume=True)


def test_lpips_is_computed_in_float32_under_autocast():
    kernel, computed = torch.randn(2, 3, 3, 3), []

    def convolved(first, second):
        found = F.conv2d(first - second, kernel).square().mean((1, 2, 3))
        computed.append(found.dtype)
        return found

    made, batch = torch.randn(2, 2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        Fidelity(convolved, 1.0).added_to(torch.zeros(()), batch, made, torch.nn.Identity())
    assert computed == [torch.float32]


def test_gradients_are_those_of_the_whole_loss(vqvae):
    """They are taken at the pixels; here they are compared with autograd's through everything."""
    model, pixels = deepcopy(vqvae).eval(), images()
    batch = torch.stack([pixels[i][0] for i in range(4)]).float() / 127.5 - 1
    adversary = Adversary(model, SETTINGS, 0)
    adversary.steps = 2
    reconstruction = model.decode(model.encode(batch))
    squares = F.mse_loss(reconstruction, batch)
    total, parts = Fidelity(distance, 0.7, adversary).added_to(
        squares, batch, reconstruction, model
    )
    weights = list(model.decoder.parameters())
    found = torch.autograd.grad(total, weights, retain_graph=True)
    wanted = squares + 0.7 * distance(reconstruction, batch).mean()
    judged = -adversary.network(reconstruction).mean()
    last = model.decoder.layers[-1].weight
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (wanted, judged)]
    balance = norms[0] / (norms[1] + 1e-6)
    assert float(parts["balance"]) == pytest.approx(float(balance), rel=1e-4)
    whole = wanted + SETTINGS.weight * balance * judged
    for own, expected in zip(found, torch.autograd.grad(whole, weights), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)


def test_the_discriminator_tells_real_images_from_others():
    model = VQVAE2(VQVAE)
    adversary = Adversary(model, AdversarySettings(weight=1.0, learning_rate=3e-3, channels=8), 0)
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(8, 3, 16, 16, generator=generator) * 2 - 1
    blurred = F.avg_pool2d(real, 3, 1, 1)
    losses = []
    for _ in range(25):
        losses.append(float(adversary.learn(real, blurred)))
        adversary.step()
    assert losses[-1] < 0.5 * losses[0]


def test_a_discriminator_that_is_right_rests():
    adversary = Adversary(VQVAE2(VQVAE), SETTINGS, 0)
    for weight in adversary.network.parameters():
        torch.nn.init.zeros_(weight)
    last = adversary.network.layers[-1]
    adversary.network.forward = lambda x: last.bias * 0 + x.mean((1, 2, 3)) * 2  # right by far
    assert float(adversary.learn(torch.ones(2, 3, 16, 16), -torch.ones(2, 3, 16, 16))) == 0
    adversary.step()
    assert not adversary.optimizer.state


def test_all_micro_batches_of_a_step_decide_whether_it_rests():
    adversary = Adversary(VQVAE2(VQVAE), SETTINGS, 0)
    last = adversary.network.layers[-1]
    adversary.network.forward = lambda x: last.bias.sum() + x.mean((1, 2, 3)) * 2
    with torch.no_grad():
        last.bias.zero_()
    right = torch.ones(2, 3, 16, 16)
    assert float(adversary.learn(right, right)) > 1  # knows nothing of these
    assert float(adversary.learn(right, -right)) == 0
    adversary.step()
    assert adversary.optimizer.state[last.bias]["exp_avg"].abs().sum() > 0


def test_uneven_micro_batches_move_the_discriminator_as_the_whole_batch_does():
    generator = torch.Generator().manual_seed(0)
    real, made = torch.rand(2, 8, 3, 16, 16, generator=generator) * 2 - 1
    moments = []
    for sizes in ([8], [2, 6]):
        adversary = Adversary(VQVAE2(VQVAE), SETTINGS, 0)
        for some, others in zip(real.split(sizes), made.split(sizes), strict=True):
            adversary.learn(some, others)
        adversary.step()
        moments.append(adversary.tensors())
    for name, moment in moments[0].items():
        if name.startswith("exp_avg."):
            torch.testing.assert_close(moments[1][name], moment, rtol=1e-3, atol=1e-6, msg=name)


def test_its_weight_rises_after_the_start():
    adversary = Adversary(VQVAE2(VQVAE), AdversarySettings(0.8, start=2, ramp=4, channels=8), 0)
    found = []
    for adversary.steps in range(8):
        found.append(adversary.weight)
    assert found == pytest.approx([0, 0, 0, 0.2, 0.4, 0.6, 0.8, 0.8])


def test_a_collapse_stops_the_run(vqvae):
    stage = stage_of(deepcopy(vqvae), most_lost=-50.0)
    with pytest.raises(DivergedError, match="have collapsed"):
        train(stage, CONFIG, progress=QUIET)


def test_several_processes_are_refused(vqvae, monkeypatch):
    monkeypatch.setattr(Ranks, "of_group", lambda: Ranks(0, 2))
    with pytest.raises(NotImplementedError, match="expected one process, .* got 2"):
        stage_of(deepcopy(vqvae))


def test_the_name_of_the_codes_is_saved(vqvae, tmp_path):
    model = deepcopy(vqvae)
    model.vqvae_hash = codes_hash(vqvae)
    save(model, tmp_path / "model")
    assert load(tmp_path / "model", expect=VQVAE2).vqvae_hash == weights_hash(vqvae)


def test_a_file_that_rounds_the_codebooks_has_other_codes(vqvae, tmp_path):
    model = deepcopy(vqvae)
    model.vqvae_hash = codes_hash(vqvae)
    save(model, tmp_path / "rounded", dtype=torch.bfloat16)
    rounded = load(tmp_path / "rounded", expect=VQVAE2)
    assert codes_hash(rounded) == weights_hash(rounded)
    # Rounded once, they are not changed again.
    rounded.vqvae_hash = "0f"
    save(rounded, tmp_path / "again", dtype=torch.bfloat16)
    assert load(tmp_path / "again", expect=VQVAE2).vqvae_hash == "0f"


@pytest.mark.parametrize("companion", ["decoder", "all"])
def test_a_compiled_decoder_has_no_discriminator(vqvae, companion):
    model, adversary = deepcopy(vqvae), Adversary(vqvae, SETTINGS, 0)
    config = replace(CONFIG, compile=True)
    if companion == "decoder":
        stage = stage_of(model, config)
    else:
        stage = vqvae_stage(model, images(), images(), config, adversary=adversary)
    with pytest.raises(ValueError, match=r"a discriminator. Turn it off, .* adversary.weight="):
        train(stage, config, progress=QUIET)
