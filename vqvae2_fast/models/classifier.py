"""Classifiers, for classification accuracy, rejection sampling and the features of a set.

ResNet-50 (https://arxiv.org/abs/1512.03385, stride in the 3×3 convolution as is usual since) for
large images, and a small residual network for small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.files.kinds import Kind, check_fields, integer, number, one_of
from vqvae2_fast.ops._batch_part import dropout_seed
from vqvae2_fast.ops.dropout_mask.op import dropout_mask

__all__ = ["Classifier", "ClassifierConfig", "check_class_labels"]

Network = Literal["small", "resnet50"]
_CHANNELS = Kind(
    "a multiple of 8", lambda value: type(value) is int and value >= 8 and value % 8 == 0
)


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier of images.

    Args:
        image_size: Height and width of the images.
        image_channels: Channels of the images: 1 for grey, 3 for RGB.
        num_classes: Number of classes, at least two.
        network: `small`, three stages of two blocks; or `resnet50`, which halves the side five
            times.
        channels: Channels of the first stage of `small`, a multiple of 8; each later stage doubles
            them. `resnet50` always starts from 64.
        dropout: Probability of dropout before the last layer.
        first_stride: Stride of the first convolution of `small`, 1 or 2.
    """

    image_size: tuple[int, int] = (224, 224)
    image_channels: int = 3
    num_classes: int = 1000
    network: Network = "resnet50"
    channels: int = 64
    dropout: float = 0.0
    first_stride: int = 1

    def __post_init__(self) -> None:
        check_fields(
            self,
            network=one_of(get_args(Network)),
            image_channels=integer(1),
            channels=_CHANNELS,
            first_stride=one_of((1, 2)),
            dropout=number(0, below=1),
        )
        if self.num_classes < 2:
            raise ValueError(
                f"expected num_classes >= 2, got {self.num_classes}: the images have no labels, or "
                "all have the same one."
            )
        least = 64 if self.network == "resnet50" else 8
        if min(self.image_size) < least:
            raise ValueError(
                f"{self.network} needs images of at least {least} pixels per "
                f"side, got {self.image_size}; network='small' takes 8."
            )

    def at_least(self) -> tuple[int, int]:
        """How many tensors and numbers the weights have at least: each network has its own."""
        return 0, 0


class Classifier(nn.Module):
    """Images `[B, C, H, W]` in [-1, 1] to logits `[B, num_classes]`."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.channels, config.image_channels
        if config.network == "small":
            layers: list[nn.Module] = [_conv(channels, width, 3, config.first_stride), nn.ReLU()]
            for stage in range(3):
                out = width << stage
                before = width << max(0, stage - 1)
                layers += [_Block(before, out, 1 if stage == 0 else 2), _Block(out, out, 1)]
        else:
            layers = [_conv(channels, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
            inner = 64
            before = 64
            for stage, blocks in enumerate((3, 4, 6, 3)):
                inner = 64 << stage
                for block in range(blocks):
                    stride = 2 if stage and not block else 1
                    layers.append(_Bottleneck(before, inner, stride))
                    before = 4 * inner
            out = before
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(out, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (_Block, _Bottleneck)):
                # Blocks begin as identities (https://arxiv.org/abs/1706.02677, section 5.1).
                nn.init.zeros_(module.last_norm.weight)

    def maps_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last map `[B, D, h, w]` and its mean `[B, D]`, which the last layer reads."""
        expected = (self.config.image_channels, *self.config.image_size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"expected images [B, C, H, W] with C, H, W = {list(expected)}, got "
                f"{list(images.shape)}."
            )
        maps = self.trunk(images)
        return maps, maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        features = self.maps_and_features(images)[1]
        if self.training and self.config.dropout > 0:
            keep = dropout_mask(
                dropout_seed(features.device),
                len(features),
                1,
                features.shape[1],
                self.config.dropout,
            )
            features = features * keep[:, 0] / (1 - self.config.dropout)
        logits: Tensor = self.head(features)
        return logits


def _conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class _Block(nn.Module):
    """Two 3×3 convolutions, added to the identity."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, 3, stride)
        self.second = _conv(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.second[1]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


class _Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, added to the identity; the output has four times the inner
    channels."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, inner, 1)
        self.second = _conv(inner, inner, 3, stride)
        self.third = _conv(inner, 4 * inner, 1)
        same = inputs == 4 * inner and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, 4 * inner, 1, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.third[1]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.second(F.relu(self.first(x))))
        return F.relu(self.shortcut(x) + self.third(inner))


def check_class_labels(labels: Tensor, num_classes: int) -> None:
    """Raise ValueError unless labels are classes of a classifier."""
    low, high = (int(end) for end in labels.aminmax()) if len(labels) else (0, 0)
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"expected labels in 0..{num_classes - 1}, the classes of the classifier, got values "
            f"in {low}..{high}."
        )
