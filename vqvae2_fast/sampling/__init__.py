"""Sampling: code maps and images drawn from priors, by engines that all draw the same codes."""

from vqvae2_fast.sampling.batches import SampleBatch, draw_batch, stream_images
from vqvae2_fast.sampling.calibration import calibrate
from vqvae2_fast.sampling.fill import fill
from vqvae2_fast.sampling.pipeline import Pipeline, sample_images, sample_levels
from vqvae2_fast.sampling.plan import SamplingPlan
from vqvae2_fast.sampling.prior import PriorInterface, interface_of, plan_of
from vqvae2_fast.sampling.sampler import (
    choose_engine,
    sample_codes,
    score_codes,
    teacher_forced_logits,
)
from vqvae2_fast.sampling.settings import DrawSettings, level_settings
from vqvae2_fast.sampling.words import with_words

__all__ = [
    "DrawSettings",
    "Pipeline",
    "PriorInterface",
    "SampleBatch",
    "SamplingPlan",
    "calibrate",
    "choose_engine",
    "draw_batch",
    "fill",
    "interface_of",
    "level_settings",
    "plan_of",
    "sample_codes",
    "sample_images",
    "sample_levels",
    "score_codes",
    "stream_images",
    "teacher_forced_logits",
    "with_words",
]
