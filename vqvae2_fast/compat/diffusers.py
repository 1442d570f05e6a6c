"""The quantiser of diffusers' `VQModel`, with the same parameters and results.

    from vqvae2_fast.compat.diffusers import VectorQuantizer

    quantizer = VectorQuantizer(model.quantize.n_e, model.quantize.vq_embed_dim, beta=0.25)
    quantizer.load_state_dict(model.quantize.state_dict())
    model.quantize = quantizer

The docstring of `vqvae2_fast.compat.taming` says what differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vqvae2_fast.compat.taming import VectorQuantizer2

if TYPE_CHECKING:
    import os

__all__ = ["VectorQuantizer"]


class VectorQuantizer(VectorQuantizer2):
    """`compat.taming.VectorQuantizer2`, whose `e_dim` is called `vq_embed_dim` here."""

    def __init__(
        self,
        n_e: int,
        vq_embed_dim: int,
        beta: float,
        remap: str | os.PathLike[str] | None = None,
        unknown_index: Literal["random", "extra"] | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__(n_e, vq_embed_dim, beta, remap, unknown_index, sane_index_shape, legacy)
        self.vq_embed_dim = vq_embed_dim
