"""Sampling: code maps and images drawn from priors, by engines that all draw the same codes."""

from vqvae2_fast.sampling.pipeline import Pipeline, sample_images, sample_levels
from vqvae2_fast.sampling.plan import SamplingPlan
from vqvae2_fast.sampling.prior import PriorInterface, interface_of, plan_of
from vqvae2_fast.sampling.rule import DrawingRule
from vqvae2_fast.sampling.sampler import (
    choose_engine,
    sample_codes,
    score_codes,
    teacher_forced_logits,
)
from vqvae2_fast.sampling.stream import DrawSettings, SampleBatch, draw_batch, stream_images

__all__ = [
    "DrawSettings",
    "DrawingRule",
    "Pipeline",
    "PriorInterface",
    "SampleBatch",
    "SamplingPlan",
    "choose_engine",
    "draw_batch",
    "interface_of",
    "plan_of",
    "sample_codes",
    "sample_images",
    "sample_levels",
    "score_codes",
    "stream_images",
    "teacher_forced_logits",
]
