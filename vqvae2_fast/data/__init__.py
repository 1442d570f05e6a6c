"""Data: the embedded emoji, folders of images, code maps, and the order of training."""

from vqvae2_fast.data.batches import batches, code_batches, in_order, shuffled_indices
from vqvae2_fast.data.codes import CodeDataset
from vqvae2_fast.data.emoji import EMOJI_CLASSES, load_emoji
from vqvae2_fast.data.folder import ImageFolder
from vqvae2_fast.data.images import ImageTensorDataset, Split, to_float, to_uint8

__all__ = [
    "EMOJI_CLASSES",
    "CodeDataset",
    "ImageFolder",
    "ImageTensorDataset",
    "Split",
    "batches",
    "code_batches",
    "in_order",
    "load_emoji",
    "shuffled_indices",
    "to_float",
    "to_uint8",
]
