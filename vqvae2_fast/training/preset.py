"""A preset: the models of all levels and how each of them is trained. presets/ names some."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vqvae2_fast.models.code_checks import check_priors_fit
from vqvae2_fast.training.extraction import Variants

if TYPE_CHECKING:
    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.models.prior import PriorConfig
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["Preset", "PresetTraining"]


@dataclass(frozen=True)
class PresetTraining:
    """How the models of a preset are trained.

    Args:
        vqvae: Training of the VQ-VAE.
        priors: Trainings of the priors, coarse to fine.
        flip: Mirror half of the VQ-VAE's training images left to right.
        variants: The changed images whose codes the priors are trained on as well.
        class_balance: How much more often the priors see records of rare classes; see `balanced`.
    """

    vqvae: TrainConfig
    priors: tuple[TrainConfig, ...]
    flip: bool = False
    variants: Variants = Variants()
    class_balance: float = 0.0

    def scaled(self, share: float) -> PresetTraining:
        """The trainings with this share of their steps; a warm-up is never longer than its run."""

        def scale(config: TrainConfig) -> TrainConfig:
            steps = max(1, round(config.steps * share))
            return replace(config, steps=steps, warmup_steps=min(config.warmup_steps, steps))

        return replace(self, vqvae=scale(self.vqvae), priors=tuple(map(scale, self.priors)))


@dataclass(frozen=True)
class Preset:
    """A VQ-VAE, the priors of its levels, coarse to fine, and how each of them is trained.

    Raises:
        ValueError: If there is not one prior and one training of it for each level of the VQ-VAE,
            or a prior does not model the codes of its level.
    """

    vqvae: VQVAE2Config
    priors: tuple[PriorConfig, ...]
    training: PresetTraining

    def __post_init__(self) -> None:
        sizes = self.vqvae.level_sizes
        by_name = {f"priors[{level}]": prior for level, prior in enumerate(self.priors)}
        check_priors_fit(by_name, self.vqvae.num_embeddings, sizes)
        if len(self.training.priors) != len(sizes):
            raise ValueError(
                f"expected training.priors to have one entry for each of the VQ-VAE's {len(sizes)} "
                f"levels, got {len(self.training.priors)}."
            )

    def scaled(self, share: float) -> Preset:
        """The same preset with this share of the steps of its trainings; codebooks that wait begin
        at the same part of a shorter training, and no later in a longer one."""
        quantize_after = round(self.vqvae.quantize_after * min(share, 1.0))
        vqvae = replace(self.vqvae, quantize_after=quantize_after)
        return replace(self, vqvae=vqvae, training=self.training.scaled(share))

    def with_classes(self, num_classes: int) -> Preset:
        """The same preset with class-conditional priors at every level."""
        priors = tuple(replace(prior, num_classes=num_classes) for prior in self.priors)
        return replace(self, priors=priors)
