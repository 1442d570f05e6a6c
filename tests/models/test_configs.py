"""Configurations of models: each number that no model can have is refused by the field's name."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.models import SMALL_TOP, SMALL_VQVAE

from vqvae2_fast import preset
from vqvae2_fast.models.configs import PixelSNAILConfig
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling import sample_codes

CONDITIONED = replace(SMALL_TOP, size=(4, 6), condition_sizes=((2, 3),))

NO_PRIORS = {
    "dropout": (1.0, 1.5, -0.1, math.nan),
    "attention_dropout": (1.0, -0.1),
    "num_heads": (0, -1),
    "channels": (0, 1),
    "residual_channels": (0,),
    "num_embeddings": (0, -3),
    "kernel_size": (-1, 1),
    "num_blocks": (-1, 0),
    "layers_per_block": (-1, 0),
    "num_output_layers": (-1,),
    "condition_channels": (0,),
    "num_condition_layers": (-1,),
    "condition_kernel_size": (-1,),
    "num_classes": (-1,),
    "num_subclasses": (-1,),
    "num_variants": (-1,),
    "num_words": (-1, 2),
    "size": (4, (4,), (0, 6)),
    "condition_sizes": (((0, 3),), ((2,),), (2, 3)),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in NO_PRIORS for value in NO_PRIORS[name]]
)
def test_a_prior_that_cannot_be_is_refused_by_its_field(name, value):
    with pytest.raises(ValueError, match=rf"^.*\b{name}\b.* got "):
        replace(CONDITIONED, **{name: value})


NO_VQVAES = {
    "image_size": (64, (64,), (0, 64)),
    "strides": (4, (), (3,)),
    "image_channels": (0,),
    "num_embeddings": (0,),
    "num_residual_blocks": (-1,),
    "quantize_after": (-1,),
    "epsilon": (-1, math.nan),
    "commitment_cost": (-1, math.nan, math.inf),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in NO_VQVAES for value in NO_VQVAES[name]]
)
def test_a_vqvae_that_cannot_be_is_refused_by_its_field(name, value):
    with pytest.raises(ValueError, match=rf"^.*\b{name}\b.* got "):
        replace(SMALL_VQVAE, **{name: value})


def test_a_prior_of_lists_is_the_prior_of_tuples():
    tuples = replace(SMALL_TOP, size=(4, 4), condition_sizes=((2, 2),))
    lists = replace(SMALL_TOP, size=[4, 4], condition_sizes=[[2, 2]])
    assert lists == tuples
    maps = [torch.zeros(1, 2, 2, dtype=torch.int64)]
    assert sample_codes(PixelSNAIL(lists), 1, condition=maps).shape == (1, 4, 4)


def test_a_vqvae_of_lists_is_the_vqvae_of_tuples():
    lists = {"image_size": list(SMALL_VQVAE.image_size), "strides": list(SMALL_VQVAE.strides)}
    assert replace(SMALL_VQVAE, **lists, quantizer=list(SMALL_VQVAE.quantizer)) == SMALL_VQVAE


def test_models_without_residual_layers_are_models():
    PixelSNAIL(replace(CONDITIONED, num_condition_layers=0))
    VQVAE2(replace(SMALL_VQVAE, num_residual_blocks=0, commitment_cost=0, epsilon=0))


def test_what_a_prior_lacks_has_no_bounds():
    PixelSNAIL(PixelSNAILConfig((2, 2), 4, 8, 8, 1, 1, attention=False, num_heads=0))
    PixelSNAIL(PixelSNAILConfig((2, 2), 4, 8, 8, 1, 1, num_heads=4, condition_channels=0))


@pytest.mark.parametrize("model", [VQVAE2, PixelSNAIL])
def test_a_whole_preset_in_place_of_a_configuration_is_an_error_that_says_so(model):
    with pytest.raises(TypeError, match="^expected .* such as .* got Preset"):
        model(preset("emoji32"))
