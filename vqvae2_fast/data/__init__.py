"""Data: sets of images, stores of code maps, and the order in which training reads them.

Image sources (avatars, emoji, fashion_mnist, folder, hugging_face, small_avatars, web_dataset) give
uint8 images of one size with labels; image_cache keeps them decoded; sources opens any of them by
name. batches and augment make training steps of them. code_store and code_writer keep code maps.
"""

from vqvae2_fast.data.augment import augment
from vqvae2_fast.data.avatars import AVATAR_STYLES, AvatarImages, load_avatars
from vqvae2_fast.data.batches import (
    BatchCut,
    batches,
    code_batches,
    codes_in_order,
    in_order,
    shuffled_indices,
)
from vqvae2_fast.data.code_store import (
    CodeStore,
    ShardReport,
    check_matches,
    discard_damaged,
    verify,
)
from vqvae2_fast.data.code_writer import CodeWriter, WriteProgress, write_codes
from vqvae2_fast.data.emoji import EMOJI_CLASSES, load_emoji
from vqvae2_fast.data.fashion_mnist import FASHION_MNIST_CLASSES, load_fashion_mnist
from vqvae2_fast.data.folder import ImageFolder
from vqvae2_fast.data.hugging_face import HuggingFaceImages, hugging_face_splits, open_hugging_face
from vqvae2_fast.data.image_cache import cached_images
from vqvae2_fast.data.images import (
    ImageSource,
    ImageTensorDataset,
    Split,
    fingerprint,
    to_float,
    to_uint8,
)
from vqvae2_fast.data.small_avatars import load_small_avatars
from vqvae2_fast.data.web_dataset import load_web_dataset

__all__ = [
    "AVATAR_STYLES",
    "EMOJI_CLASSES",
    "FASHION_MNIST_CLASSES",
    "AvatarImages",
    "BatchCut",
    "CodeStore",
    "CodeWriter",
    "HuggingFaceImages",
    "ImageFolder",
    "ImageSource",
    "ImageTensorDataset",
    "ShardReport",
    "Split",
    "WriteProgress",
    "augment",
    "batches",
    "cached_images",
    "check_matches",
    "code_batches",
    "codes_in_order",
    "discard_damaged",
    "fingerprint",
    "hugging_face_splits",
    "in_order",
    "load_avatars",
    "load_emoji",
    "load_fashion_mnist",
    "load_small_avatars",
    "load_web_dataset",
    "open_hugging_face",
    "shuffled_indices",
    "to_float",
    "to_uint8",
    "verify",
    "write_codes",
]
