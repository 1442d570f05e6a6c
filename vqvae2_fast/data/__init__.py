"""Data: the embedded emoji, folders of images, code maps, and the order of training."""

from vqvae2_fast.data.batches import batches, code_batches, in_order, shuffled_indices
from vqvae2_fast.data.code_numpy import codes_from_numpy, codes_to_numpy
from vqvae2_fast.data.code_store import (
    CodeStore,
    ShardReport,
    check_matches,
    discard_damaged,
    verify,
)
from vqvae2_fast.data.code_writer import CodeWriter, WriteProgress, write_codes
from vqvae2_fast.data.codes import CodeDataset
from vqvae2_fast.data.emoji import EMOJI_CLASSES, load_emoji
from vqvae2_fast.data.folder import ImageFolder
from vqvae2_fast.data.images import ImageTensorDataset, Split, to_float, to_uint8

__all__ = [
    "EMOJI_CLASSES",
    "CodeDataset",
    "CodeStore",
    "CodeWriter",
    "ImageFolder",
    "ImageTensorDataset",
    "ShardReport",
    "Split",
    "WriteProgress",
    "batches",
    "check_matches",
    "code_batches",
    "codes_from_numpy",
    "codes_to_numpy",
    "discard_damaged",
    "in_order",
    "load_emoji",
    "shuffled_indices",
    "to_float",
    "to_uint8",
    "verify",
    "write_codes",
]
