"""Sampling: code maps and images drawn from priors, by engines that all draw the same codes."""

from vqvae2_fast.sampling.pipeline import Pipeline, sample_images, sample_levels
from vqvae2_fast.sampling.plan import SamplingPlan
from vqvae2_fast.sampling.prior import PriorInterface, interface_of, plan_of
from vqvae2_fast.sampling.rule import DrawingRule
from vqvae2_fast.sampling.sampler import choose_engine, sample_codes, teacher_forced_logits

__all__ = [
    "DrawingRule",
    "Pipeline",
    "PriorInterface",
    "SamplingPlan",
    "choose_engine",
    "interface_of",
    "plan_of",
    "sample_codes",
    "sample_images",
    "sample_levels",
    "teacher_forced_logits",
]
