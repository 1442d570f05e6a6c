"""The preset that is chosen for images."""

from __future__ import annotations

import pytest

from vqvae2_fast.data.own_images import fitted_side
from vqvae2_fast.presets.fitting import fitting_preset


@pytest.mark.parametrize("side", sorted({fitted_side(side) for side in range(16, 257)}))
def test_every_side_has_a_preset_of_its_size(side):
    _, preset = fitting_preset((1, side, side), 1000)
    assert preset.vqvae.image_size == (side, side)
    assert preset.vqvae.image_channels == 1
    assert [prior.size for prior in preset.priors] == list(preset.vqvae.level_sizes)


@pytest.mark.parametrize(
    ("side", "name"), [(28, "emoji32"), (64, "photos64"), (96, "photos128"), (256, "photos256")]
)
def test_larger_images_have_larger_models(side, name):
    assert fitting_preset((3, side, side), 1000)[0] == name


def test_images_are_mirrored_only_where_that_is_allowed():
    for flip in (False, True):
        training = fitting_preset((3, 64, 64), 1000, flip=flip)[1].training
        assert (training.flip, training.variants.flip) == (flip, flip)


def test_altered_copies_are_made_of_small_sets_only():
    copies = [
        fitting_preset((3, 32, 32), count)[1].training.variants.copies for count in (500, 9000)
    ]
    assert copies[0] > 0
    assert copies[1] == 0
