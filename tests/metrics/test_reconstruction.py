"""Reconstruction error against hand-worked numbers."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields

import pytest
import torch

from vqvae2_fast.metrics import psnr, reconstruction_error
from vqvae2_fast.metrics.reconstruction import PairMeasures, reconstruction_measures
from vqvae2_fast.models.configs import VQVAE2Config


class Shifted(torch.nn.Module):
    """A model whose reconstruction is its input plus a constant."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(shift))

    def encode(self, images):
        return [images]

    def decode(self, codes):
        return codes[0] + self.shift


def test_psnr_of_known_errors():
    assert psnr(1.0) == 0
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0.0) == math.inf


def test_error_is_the_mean_over_all_pixels_on_both_scales():
    # 3 images at 0 with an error of 0.2; batches of unequal size must not weigh equally.
    batches = [torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)]
    error = reconstruction_error(Shifted(0.2), batches)
    assert error.mse == pytest.approx(0.04)
    assert error.mse_unit == pytest.approx(0.01)
    assert error.psnr == pytest.approx(20, abs=1e-5)


def test_psnr_is_of_the_mean_error_not_the_mean_of_psnrs():
    class Second(Shifted):
        def decode(self, codes):
            return codes[0] + self.shift * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)

    error = reconstruction_error(Second(0.2), [torch.zeros(2, 1, 2, 2)])
    assert error.psnr == pytest.approx(-10 * math.log10(0.005), abs=1e-5)


def test_reconstructions_are_clipped_to_what_can_be_shown():
    error = reconstruction_error(Shifted(5.0), [torch.ones(1, 1, 2, 2)])
    assert error.mse == 0


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one batch of images, got none"):
        reconstruction_error(Shifted(0.0), [])


def test_similarity_is_measured_where_its_window_fits():
    for side in (8, 12):
        model = Shifted(0.0)
        model.config = VQVAE2Config(image_size=(side, side), strides=(2, 2))
        found = reconstruction_measures(model, [torch.rand(2, 3, side, side)])
        assert (getattr(found, "ssim", None) is not None) == (side == 12)
        assert found.mse == 0


def test_lpips_of_images_that_are_too_small_is_refused():
    model = Shifted(0.0)
    model.config = VQVAE2Config(image_size=(8, 8), strides=(2, 2))
    with pytest.raises(ValueError, match="expected images of 11 pixels or more"):
        reconstruction_measures(model, [torch.rand(2, 3, 8, 8)], lambda a, b: a)


def test_only_measures_that_every_evaluation_has_are_required():
    """`evaluate --beside` reads files of earlier versions."""
    required = [measure.name for measure in fields(PairMeasures) if measure.default is MISSING]
    assert required == ["mse", "mse_unit", "psnr", "ssim", "lpips"]
