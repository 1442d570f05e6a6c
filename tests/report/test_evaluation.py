"""The lines of an evaluation: what they say of each level."""

from __future__ import annotations

from vqvae2_fast.metrics.reconstruction import Reconstruction
from vqvae2_fast.metrics.results import Evaluation, LevelCost
from vqvae2_fast.report.evaluation import evaluation_lines


def test_the_gap_between_held_out_and_training_images_is_named():
    level = LevelCost(4, 3, 2.0, 1.0, 4.0, 6.162, 8.9, 35.6, 6.181, 8.917, -0.019)
    found = Evaluation(
        images=7,
        reconstruction=Reconstruction(0.1, 0.025, 16.0),
        levels={"top": level},
        bits_per_image=2.9,
        marginal_bits_per_image=4.0,
        bits_per_dim=0.1,
        codecs={},
    )
    assert evaluation_lines(found)[1].endswith(
        "; training images 6.181 nats per code, gap (held out minus training) -0.019"
    )
