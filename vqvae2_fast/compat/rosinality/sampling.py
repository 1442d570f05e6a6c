"""Makes the port's PixelSNAIL known to `sample_codes`: every engine draws from it.

The port's own forward defines the prior; its plan is that of the native prior of the same weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.compat.rosinality.convert import to_native
from vqvae2_fast.compat.rosinality.pixelsnail import PixelSNAIL
from vqvae2_fast.modules.as_made import layers_as_made
from vqvae2_fast.sampling.pixelsnail import pixelsnail_plan
from vqvae2_fast.sampling.prior import PriorInterface, alteration, interface_of

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2_fast.sampling.plan import SamplingPlan

__all__: list[str] = []


def _interface_of_port(prior: PixelSNAIL) -> PriorInterface:
    height, width = prior.background.shape[2:]
    conditioned = hasattr(prior, "cond_resnet")

    def logits(codes: Tensor, maps: list[Tensor], labels: Tensor | None) -> Tensor:
        result: Tensor = prior(codes, maps[0] if maps else None)[0]
        return result

    def plan() -> SamplingPlan:
        return pixelsnail_plan(to_native(prior))

    def altered() -> str | None:
        if prior.activated_skip:
            return "its layers add ELU(x) (activated_skip)"
        if 0 in prior._arguments[4:6]:
            return "it has no gated layers (n_block or n_res_block is 0)"
        return alteration(prior, layers_as_made(PixelSNAIL, *prior._arguments))

    return PriorInterface(
        size=(height, width),
        num_embeddings=prior.n_class,
        num_classes=0,
        condition_sizes=((height // 2, width // 2),) if conditioned else (),
        logits=logits,
        plan=plan,
        altered=altered,
    )


interface_of.register(PixelSNAIL, _interface_of_port)
