"""Modules: the layers that the models are made of, on the operators of `ops`.

quantizer holds the quantiser; codebook and codebook_steps its start, updates and restarts.
encoder, decoder, residual and trained_conv make the VQ-VAE. stem, causal_conv, gated, attention and
conditioning make the prior. outside_graphs keeps what depends on values out of compiled graphs;
device, autocast and evaluating ask for or set what holds for a whole module.
"""

from vqvae2_fast.modules.attention import CausalAttention
from vqvae2_fast.modules.causal_conv import CausalConv2d, SameConv2d
from vqvae2_fast.modules.conditioning import ConditionStack
from vqvae2_fast.modules.decoder import Decoder
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.modules.encoder import Encoder
from vqvae2_fast.modules.evaluating import evaluating
from vqvae2_fast.modules.gated import GatedResidual
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.residual import ResidualBlock
from vqvae2_fast.modules.stem import CausalStem

__all__ = [
    "CausalAttention",
    "CausalConv2d",
    "CausalStem",
    "ConditionStack",
    "Decoder",
    "Encoder",
    "GatedResidual",
    "ResidualBlock",
    "SameConv2d",
    "VectorQuantizerEMA",
    "device_of",
    "evaluating",
]
