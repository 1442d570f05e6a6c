"""Modules: the layers that the models are made of, on the operators of `ops`.

quantizer holds the quantiser of the paper; averages the rule by which its codebook starts, moves
and restarts, batch the vectors that it learns from, host what is known outside of its tensors. fsq,
binary, learnt_codes, residual_vq, multi_scale, grouped and random_projection hold the other
quantisers, quantizer_interface what they share, level_quantizer the words that name them.
encoder_decoder makes the VQ-VAE. stem, causal_conv, gated, attention and conditioning make the
prior. contexts asks for or sets what holds for a whole module.
"""

from vqvae2_fast.modules.attention import CausalAttention
from vqvae2_fast.modules.binary import BSQ, LFQ
from vqvae2_fast.modules.causal_conv import CausalConv2d, SameConv2d
from vqvae2_fast.modules.conditioning import ConditionStack
from vqvae2_fast.modules.contexts import device_of, evaluating
from vqvae2_fast.modules.encoder_decoder import Decoder, Encoder, ResidualBlock
from vqvae2_fast.modules.fsq import FSQ, ResidualFSQ
from vqvae2_fast.modules.gated import GatedResidual
from vqvae2_fast.modules.grouped import GroupedResidualVQ, MultiHeadVQ
from vqvae2_fast.modules.learnt_codes import IBQ, SimVQ, VectorQuantizer, VQBridge
from vqvae2_fast.modules.multi_scale import MultiScaleVQ
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.quantizer_interface import Quantizer
from vqvae2_fast.modules.random_projection import RandomProjectionQuantizer
from vqvae2_fast.modules.residual_vq import ResidualVQ
from vqvae2_fast.modules.stem import CausalStem

__all__ = [
    "BSQ",
    "FSQ",
    "IBQ",
    "LFQ",
    "CausalAttention",
    "CausalConv2d",
    "CausalStem",
    "ConditionStack",
    "Decoder",
    "Encoder",
    "GatedResidual",
    "GroupedResidualVQ",
    "MultiHeadVQ",
    "MultiScaleVQ",
    "Quantizer",
    "RandomProjectionQuantizer",
    "ResidualBlock",
    "ResidualFSQ",
    "ResidualVQ",
    "SameConv2d",
    "SimVQ",
    "VQBridge",
    "VectorQuantizer",
    "VectorQuantizerEMA",
    "device_of",
    "evaluating",
]
