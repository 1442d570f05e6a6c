"""The codec: images and code maps as the number of bits that a pipeline's priors promise, and back.

Section 3.2 of https://arxiv.org/abs/1906.00446 calls a prior a lossless code of the latents. Here
it is one. README.md describes the format, and why any machine decodes what another has encoded.
"""

from vqvae2_fast.codec.bitstream import Description, describe, open_compressed
from vqvae2_fast.codec.codes import decode_codes, decode_stream, encode_codes, encode_stream
from vqvae2_fast.codec.images import decode_image_stream, decode_images, encode_images

__all__ = [
    "Description",
    "decode_codes",
    "decode_image_stream",
    "decode_images",
    "decode_stream",
    "describe",
    "encode_codes",
    "encode_images",
    "encode_stream",
    "open_compressed",
]
