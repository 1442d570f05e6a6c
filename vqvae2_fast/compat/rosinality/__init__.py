"""rosinality/vq-vae-2-pytorch: change the import and keep the code and the checkpoints.

`from vqvae import VQVAE`, `from pixelsnail import PixelSNAIL` and `from dataset import CodeRow,
LMDBDataset` become imports from `vqvae2_fast.compat.rosinality`. See
`docs/migrating-from-rosinality.md`.
"""

from vqvae2_fast.compat.rosinality import sampling as _registers_the_prior  # noqa: F401
from vqvae2_fast.compat.rosinality.checkpoint import (
    Checkpoint,
    StateDictError,
    load_checkpoint,
)
from vqvae2_fast.compat.rosinality.convert import (
    from_native,
    load_pixelsnail,
    load_vqvae,
    to_native,
)
from vqvae2_fast.compat.rosinality.layers import (
    CausalConv2d,
    GatedResBlock,
    WNConv2d,
    shift_down,
    shift_right,
    wn_linear,
)
from vqvae2_fast.compat.rosinality.lmdb_codes import CodeRow, LMDBDataset, import_lmdb_codes
from vqvae2_fast.compat.rosinality.pixelsnail import (
    CausalAttention,
    CondResNet,
    PixelBlock,
    PixelSNAIL,
    causal_mask,
)
from vqvae2_fast.compat.rosinality.vqvae import VQVAE, Decoder, Encoder, Quantize, ResBlock

__all__ = [
    "VQVAE",
    "CausalAttention",
    "CausalConv2d",
    "Checkpoint",
    "CodeRow",
    "CondResNet",
    "Decoder",
    "Encoder",
    "GatedResBlock",
    "LMDBDataset",
    "PixelBlock",
    "PixelSNAIL",
    "Quantize",
    "ResBlock",
    "StateDictError",
    "WNConv2d",
    "causal_mask",
    "from_native",
    "import_lmdb_codes",
    "load_checkpoint",
    "load_pixelsnail",
    "load_vqvae",
    "shift_down",
    "shift_right",
    "to_native",
    "wn_linear",
]
