"""What a set of images or of codes has to offer to be trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CodeSource", "ImageSource", "check_image_source"]


class ImageSource(Protocol):
    """A set of images to train on: an `ImageTensorDataset`, an `ImageFolder`, ... or your own.

    An item is one image, uint8 `[C, H, W]`, and its label; `labels` is int64 `[N]`, -1 for none.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


def check_image_source(argument: str, images: ImageSource) -> None:
    """Raises TypeError for what is no set of images, such as an array."""
    if not hasattr(images, "image_shape"):
        raise TypeError(
            f"expected {argument} to be a set of images, such as an ImageFolder, got "
            f"{type(images).__name__}. Make one of an array: ImageTensorDataset(images, labels, "
            "class_names), with uint8 images [N, C, H, W]."
        )


class CodeSource(Protocol):
    """Records of codes to train on: a `CodeStore`, or one with other labels."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, /) -> tuple[list[Tensor], Tensor]: ...
