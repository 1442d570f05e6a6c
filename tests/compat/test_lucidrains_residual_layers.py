"""Layouts of `compat.lucidrains.ResidualVQ`, and what is set on single layers of it."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
import vector_quantize_pytorch as package
from helpers.drop_ins import assert_near, assert_same_step

from vqvae2_fast.compat import lucidrains

BASE = {"dim": 8, "num_quantizers": 3, "codebook_size": 12}
SEQUENCE = (2, 9, 8)


def pair(kind: str = "ResidualVQ", **arguments):
    modules = []
    for source in (package, lucidrains):
        torch.manual_seed(0)
        modules.append(getattr(source, kind)(**(BASE | arguments)))
    return modules


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ({"channel_last": False}, (2, 8, 8)),
        ({"channel_last": False}, (2, 8)),
        ({"accept_3d_fmap": True}, (2, 8, 8, 8, 8)),
    ],
)
def test_channels_before_positions_are_those_of_the_package(layout, shape):
    """The package takes only positions of dim steps."""
    theirs, ours = pair(**layout)
    torch.manual_seed(1)
    for mode in (True, False):
        assert_same_step(theirs.train(mode), ours.train(mode), torch.randn(shape), seed=0)


@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ"])
@pytest.mark.parametrize(
    ("layout", "positions"),
    [
        ({"channel_last": False}, (5,)),
        ({"accept_image_fmap": True}, (3, 4)),
        ({"accept_3d_fmap": True}, (2, 3, 4)),
    ],
)
def test_channels_before_positions_are_sequences_of_them(kind, layout, positions):
    groups = {"groups": 2} if kind == "GroupedResidualVQ" else {}
    ours = pair(kind, codebook_dim=3, **groups, **layout)[1]
    sequences = pair(kind, codebook_dim=3, **groups)[1]
    x = torch.randn(2, 8, *positions)
    quantized, indices, losses = ours(x)
    expected, expected_indices, expected_losses = sequences(x.flatten(2).mT)
    assert_near(quantized.flatten(2).mT, expected, "quantized")
    assert torch.equal(indices.reshape(expected_indices.shape), expected_indices)
    assert_near(losses, expected_losses, "losses")


def train_the_second_alone(module) -> None:
    module.eval()
    module.layers[1].train()


def stop_the_first(module):
    module.layers[0].eval()


def weigh_the_second(module):
    module.layers[1].commitment_weight = 10.0


def unroute_the_second(module):
    module.layers[1].route_gradients_to_input = False


def rotate_only_the_first(module):
    for layer in module.layers[1:]:
        layer.rotation_trick = False


def spread_the_second(module):
    module.layers[1].codebook_diversity_loss_weight = 0.1
    with suppress(AttributeError):  # ours follows the weight
        module.layers[1].has_codebook_diversity_loss = True


@pytest.mark.parametrize(
    "change",
    [
        train_the_second_alone,
        stop_the_first,
        weigh_the_second,
        unroute_the_second,
        rotate_only_the_first,
        spread_the_second,
    ],
)
def test_what_is_set_on_one_layer_counts(change):
    theirs, ours = pair()
    change(theirs)
    change(ours)
    torch.manual_seed(1)
    assert_same_step(theirs, ours, torch.randn(SEQUENCE), seed=0)


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_hooks_of_layers_are_called(register):
    ours, calls = pair()[1], []
    getattr(ours.layers[2], register)(lambda *_: calls.append(1))
    ours(torch.randn(SEQUENCE, requires_grad=True))[0].sum().backward()
    assert calls == [1]


def test_a_hook_of_all_modules_sees_the_layers():
    ours, seen = pair()[1], []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        ours(torch.randn(SEQUENCE))
    finally:
        hook.remove()
    assert set(ours.layers) <= set(seen)
