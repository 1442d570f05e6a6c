"""Classifiers: networks, their training, recipes, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqvae2_fast.checkpoints import load
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.metrics import classification_accuracy
from vqvae2_fast.models.classifier import Classifier, ClassifierConfig
from vqvae2_fast.training import TrainConfig, learning_rate, train
from vqvae2_fast.training.classifier import classifier_recipe, classifier_stage

SMALL = ClassifierConfig((12, 12), 1, 2, "small", 8)


def stripes(count: int, seed: int = 0) -> ImageTensorDataset:
    """Noise with horizontal (0) or vertical (1) stripes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(100, (count, 1, 12, 12), generator=generator)
    for label in (0, 1):
        rows = (labels == label).nonzero().flatten()
        part = images[rows] if label else images[rows].transpose(2, 3)
        part[..., ::3] += 120
        images[rows] = part if label else part.transpose(2, 3)
    return ImageTensorDataset(images.to(torch.uint8), labels, ("across", "down"))


def test_a_small_classifier_learns_and_comes_back_from_its_run(tmp_path):
    torch.manual_seed(0)
    settings = TrainConfig(steps=30, batch_size=16, learning_rate=0.01, warmup_steps=5)
    stage = classifier_stage(Classifier(SMALL), stripes(64), stripes(32, 1), settings)
    result = train(stage, settings, out=tmp_path / "run", class_names=("across", "down"))
    assert result.metrics["accuracy"] == 1
    loaded = load(tmp_path / "run")
    images = torch.rand(3, 1, 12, 12) * 2 - 1
    assert torch.allclose(loaded(images), stage.model(images), atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "muon"])
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, optimizer):
    settings = TrainConfig(
        steps=4, batch_size=8, optimizer=optimizer, warmup_steps=1, save_every=2, learning_rate=0.01
    )

    def run(out, resume: bool):
        torch.manual_seed(0)
        stage = classifier_stage(Classifier(SMALL), stripes(32), stripes(8, 1), settings)
        train(stage, settings, out=out, resume=resume)
        return stage.model.state_dict()

    whole = run(tmp_path / "whole", False)
    # The learning rate depends on the total number of steps, so stop by the checkpoint, not by
    # fewer steps.
    (tmp_path / "part" / "checkpoints").mkdir(parents=True)
    (tmp_path / "whole" / "checkpoints" / "step-000000002").rename(
        tmp_path / "part" / "checkpoints" / "step-000000002"
    )
    part = run(tmp_path / "part", True)
    assert all(torch.equal(part[name], whole[name]) for name in whole)


def test_a_run_does_not_go_on_with_another_optimiser(tmp_path):
    settings = TrainConfig(steps=1, batch_size=8)
    train(
        classifier_stage(Classifier(SMALL), stripes(16), stripes(8), settings),
        settings,
        out=tmp_path / "run",
    )
    other = replace(settings, steps=2, optimizer="momentum")
    stage = classifier_stage(Classifier(SMALL), stripes(16), stripes(8), other)
    with pytest.raises(ValueError, match="optimizer=adamw, got momentum"):
        train(stage, other, out=tmp_path / "run", resume=True)


def test_resnet50_is_the_papers_size():
    with torch.device("meta"):
        model = Classifier(ClassifierConfig((224, 224), 3, 1000, "resnet50"))
    # The number of weights of torchvision's resnet50.
    assert sum(weight.numel() for weight in model.parameters()) == 25_557_032
    maps, found = model.maps_and_features(torch.empty(1, 3, 224, 224, device="meta"))
    assert maps.shape == (1, 2048, 7, 7)
    assert found.shape == (1, 2048)


def test_the_recipe_of_imagenet_is_that_of_the_papers_cas():
    model, settings = classifier_recipe((3, 256, 256), 1000, 1_281_167)
    epoch = 1_281_167 // 1024
    assert model.network == "resnet50"
    assert (settings.steps, settings.batch_size * settings.accumulate) == (90 * epoch, 1024)
    rates = [learning_rate(n * epoch, settings) for n in (5, 29, 30, 60, 80, 89)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.004, 0.0004, 0.0004])
    assert learning_rate(epoch, settings) == pytest.approx(0.4 / 5, rel=0.01)


@pytest.mark.parametrize("side", [32, 128])
def test_other_epochs_or_steps_change_the_warm_up_in_proportion(side):
    _, whole = classifier_recipe((3, side, side), 10, 102_400)
    for fewer in ({"epochs": 1}, {"steps": 90}):
        _, settings = classifier_recipe((3, side, side), 10, 102_400, **fewer)
        assert settings.steps < whole.steps
        assert 0 < settings.warmup_steps <= settings.steps // 10
    with pytest.raises(ValueError, match="expected steps .* got 0"):
        classifier_recipe((3, side, side), 10, 102_400, steps=0)


def test_accuracy_by_class_and_among_five():
    class Fixed(torch.nn.Module):
        config = ClassifierConfig((8, 8), 1, 7, "small", 8)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return torch.arange(7.0).flip(0).expand(len(images), 7)  # class 0, never 6

    labels = torch.tensor([0, 0, 1, 4, 5, 6])
    found = classification_accuracy(Fixed(), [(torch.zeros(6, 1, 8, 8), labels)])
    assert found.top1 == pytest.approx(2 / 6)
    assert found.top5 == pytest.approx(4 / 6)
    assert found.by_class[0] == 1
    assert found.low < found.top1 < found.high
    with pytest.raises(ValueError, match=r"labels in 0..6, .* got values in 7..7"):
        classification_accuracy(Fixed(), [(torch.zeros(1, 1, 8, 8), torch.tensor([7]))])


def test_images_without_labels_or_of_other_classes_are_refused():
    settings = TrainConfig(steps=1, batch_size=4)
    nameless = ImageTensorDataset(stripes(8).images)
    with pytest.raises(ValueError, match="8 of 8 have none"):
        classifier_stage(Classifier(SMALL), nameless, stripes(8), settings)
    three = replace(SMALL, num_classes=3)
    with pytest.raises(ValueError, match="the classifier has 3 classes, the images 2"):
        classifier_stage(Classifier(three), stripes(8), stripes(8), settings)
    others = ImageTensorDataset(stripes(8).images, stripes(8).labels, ("across", "zebra"))
    with pytest.raises(ValueError, match="got label 1 for 'down' and 'zebra'"):
        classifier_stage(Classifier(SMALL), stripes(8), others, settings)


def test_the_small_network_halves_images_of_48_pixels_first():
    for side, stride in ((47, 1), (48, 2)):
        config, settings = classifier_recipe((3, side, side), 5, 1000)
        assert (config.network, config.first_stride) == ("small", stride)
        assert settings.precision == "float32"
        maps, _ = Classifier(config).maps_and_features(torch.zeros(2, 3, side, side))
        assert maps.shape[-2:] == (12 // stride, 12 // stride)
    with pytest.raises(ValueError, match="first_stride to be one of 1, 2, got 3"):
        ClassifierConfig((48, 48), 3, 5, "small", 8, first_stride=3)
    with pytest.raises(ValueError, match="network to be one of .*, got 'resnet18'"):
        ClassifierConfig(network="resnet18")
