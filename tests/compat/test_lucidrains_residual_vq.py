"""Compares `ResidualVQ` and its relatives in `compat.lucidrains` with the package's."""

from __future__ import annotations

import copy

import pytest
import torch
import vector_quantize_pytorch as package
from helpers.drop_ins import assert_near, assert_same_step

from vqvae2_fast.compat import lucidrains

SEQUENCE, LONG = (2, 9, 8), (1, 60, 8)
BASE = {"dim": 8, "num_quantizers": 3, "codebook_size": 12}
LEARNABLE = {"learnable_codebook": True, "ema_update": False}


def sgd(weights) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, 0.1)


GRID = {
    "defaults": ({}, SEQUENCE),
    "straight_through": ({"rotation_trick": False}, SEQUENCE),
    "weight": ({"commitment_weight": 0.25, "decay": 0.95}, SEQUENCE),
    "no_commitment": ({"commitment_weight": 0.0}, SEQUENCE),
    "sizes": ({"codebook_size": (12, 5, 7)}, SEQUENCE),
    "projected": ({"codebook_dim": 4}, SEQUENCE),
    # Straight through: a vector that is a code leaves a residual of rounding errors to rotate.
    "kmeans": ({"kmeans_init": True, "kmeans_iters": 5, "rotation_trick": False}, LONG),
    "dead_codes": ({"threshold_ema_dead_code": 2, "rotation_trick": False}, LONG),
    "kmeans_dead_codes": (
        {"kmeans_init": True, "threshold_ema_dead_code": 2, "rotation_trick": False},
        LONG,
    ),
    "cosine": ({"use_cosine_sim": True}, SEQUENCE),
    "dropout": ({"quantize_dropout": True}, SEQUENCE),
    "dropout_multiple": (
        {
            "num_quantizers": 5,
            "quantize_dropout": True,
            "quantize_dropout_cutoff_index": 1,
            "quantize_dropout_multiple_of": 2,
        },
        SEQUENCE,
    ),
    "dropout_of_one": (
        {"num_quantizers": 1, "quantize_dropout": True, "quantize_dropout_cutoff_index": 1},
        SEQUENCE,
    ),
    "shared": ({"shared_codebook": True}, SEQUENCE),
    "shared_kmeans_dead_codes": (
        {
            "shared_codebook": True,
            "kmeans_init": True,
            "threshold_ema_dead_code": 2,
            "rotation_trick": False,
        },
        LONG,
    ),
    "shared_in_place": (
        LEARNABLE | {"shared_codebook": True, "in_place_codebook_optimizer": sgd},
        SEQUENCE,
    ),
    "stochastic": (
        {"stochastic_sample_codes": True, "sample_codebook_temp": 0.1, "shared_codebook": True},
        SEQUENCE,
    ),
    "learnable": (LEARNABLE, SEQUENCE),
    "in_place": (LEARNABLE | {"in_place_codebook_optimizer": sgd}, SEQUENCE),
    "no_ema": ({"ema_update": False}, SEQUENCE),
    "unrouted": ({"route_gradients_to_input": False}, SEQUENCE),
    "gradient_share": ({"quant_grad_frac": 0.3}, SEQUENCE),
    "orthogonal": ({"orthogonal_reg_weight": 1.0}, SEQUENCE),
    "diversity": ({"codebook_diversity_loss_weight": 0.1}, SEQUENCE),
    "diveq": ({"diveq": True}, SEQUENCE),
    "beam": ({"beam_size": 3}, SEQUENCE),
    "beam_weights": (
        {"beam_size": 2, "eval_beam_size": 4, "beam_score_quantizer_weights": [1.0, 0.5, 2.0]},
        SEQUENCE,
    ),
}


def pair(arguments: dict, kind: str = "ResidualVQ", seed: int = 0):
    modules = []
    for source in (package, lucidrains):
        torch.manual_seed(seed)
        modules.append(getattr(source, kind)(**(BASE | arguments)))
    return modules


def assert_same_training(theirs, ours, shape: tuple[int, ...]) -> None:
    optimisers = [torch.optim.SGD([*m.parameters(), torch.zeros(1)], 0.01) for m in (theirs, ours)]
    torch.manual_seed(1)
    batches = torch.randn(6, *shape)
    for step in range(5):
        assert_same_step(theirs, ours, batches[step], seed=step)
        for optimiser in optimisers:
            optimiser.step()
    assert_same_step(theirs.eval(), ours.eval(), batches[5], seed=5)


@pytest.mark.parametrize("name", GRID)
def test_five_training_steps_and_evaluation(name):
    arguments, shape = GRID[name]
    theirs, ours = pair(arguments)
    assert_same_training(theirs, ours, shape)


@pytest.mark.parametrize("name", ["defaults", "dropout", "sizes"])
def test_groups(name):
    arguments, shape = GRID[name]
    theirs, ours = pair(arguments | {"groups": 2}, "GroupedResidualVQ")
    assert_same_training(theirs, ours, shape)
    x = torch.randn(shape)
    if name != "sizes":
        assert_same_step(theirs, ours, x, seed=0, return_all_codes=True)
        assert_near(ours.codebooks, theirs.codebooks, "codebooks")
    indices = theirs(x)[1]
    actual = ours.get_output_from_indices(indices)
    assert_near(actual, theirs.get_output_from_indices(indices), "output")


@pytest.mark.parametrize("name", ["defaults", "straight_through", "cosine", "learnable"])
@pytest.mark.parametrize("padding", [True, False])
def test_masked_sequences(name, padding):
    arguments = GRID[name][0] | {"return_zeros_for_masked_padding": padding}
    theirs, ours = pair(arguments)
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    for module in ("train", "eval"):
        assert_same_step(
            getattr(theirs, module)(), getattr(ours, module)(), torch.randn(SEQUENCE), 0, mask=mask
        )


def test_a_transform_leaves_a_module_that_can_be_copied():
    ours = pair({})[1].eval()
    ours(torch.randn(SEQUENCE))
    torch.func.grad(lambda x: ours(x)[0].square().sum())(torch.randn(SEQUENCE))
    assert copy.deepcopy(ours).layers[-1].perplexity > 1


@pytest.mark.parametrize("name", ["defaults", "projected", "sizes", "dropout"])
def test_codes_and_outputs_of_indices(name):
    theirs, ours = (module.eval() for module in pair(GRID[name][0]))
    indices = theirs(torch.randn(SEQUENCE))[1]
    if name == "dropout":
        indices = indices[..., :2]
    for method in ("get_codes_from_indices", "get_output_from_indices"):
        assert_near(getattr(ours, method)(indices), getattr(theirs, method)(indices), method)


@pytest.mark.parametrize("name", ["defaults", "kmeans", "projected", "shared", "learnable"])
def test_state_dicts_load_both_ways(name):
    arguments, shape = GRID[name]
    theirs, ours = pair(arguments)
    other_theirs, other_ours = pair(arguments, seed=7)
    other_ours.load_state_dict(theirs.state_dict(), strict=True)
    other_theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same_step(theirs, other_ours, torch.randn(shape), seed=0)


def test_a_seed_of_one_call_chooses_the_dropout():
    theirs, ours = pair({"quantize_dropout": True, "num_quantizers": 6})
    for seed in range(4):
        x = torch.randn(SEQUENCE)
        assert_same_step(theirs, ours, x, seed=0, rand_quantize_dropout_fixed_seed=seed)


def test_all_quantisers_at_once_are_those_one_by_one():
    at_once, one_by_one = (pair({"threshold_ema_dead_code": 1})[1] for _ in range(2))
    one_by_one.layers[1].register_forward_hook(lambda *_: None)
    assert_same_training(at_once, one_by_one, LONG)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"implicit_neural_codebook": True}, NotImplementedError, "Use more quantisers"),
        ({"affine_param": True}, NotImplementedError, "affine_param is not supported"),
        ({"heads": 2}, ValueError, "expected heads=1"),
        ({"codebook_size": (4, 5)}, ValueError, "expected num_quantizers=2"),
        ({"num_quantizers": None}, ValueError, "expected num_quantizers with one codebook_size"),
        (
            {"codebook_size": (4, 5, 6), "shared_codebook": True},
            ValueError,
            "one codebook_size with shared_codebook",
        ),
        ({"eval_beam_size": 2}, ValueError, "beam_size with eval_beam_size"),
        ({"beam_score_quantizer_weights": [1.0]}, ValueError, "expected 3 beam_score"),
        ({"quantize_dropout": True, "quantize_dropout_cutoff_index": 3}, ValueError, r"in 0\.\.2"),
    ],
)
def test_what_does_not_fit_or_stays_out_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        lucidrains.ResidualVQ(**(BASE | arguments))


@pytest.mark.parametrize("codebooks", [1, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_random_projections(codebooks, norm):
    modules = []
    for source in (package, lucidrains):
        torch.manual_seed(0)
        modules.append(
            source.RandomProjectionQuantizer(
                dim=8, codebook_size=20, codebook_dim=4, num_codebooks=codebooks, norm=norm
            )
        )
    theirs, ours = modules
    x = torch.randn(2, 9, 8)
    labels = theirs(x)
    assert torch.equal(ours(x), labels)
    assert_near(ours(x, indices=labels), theirs(x, indices=labels), "cross-entropy")
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_a_sequence_of_modules_returns_what_its_quantiser_does():
    results = []
    for source in (package, lucidrains):
        torch.manual_seed(0)
        module = source.Sequential(
            torch.nn.Linear(4, 8),
            source.VectorQuantize(dim=8, codebook_size=20),
            torch.nn.Linear(8, 4),
        ).eval()
        results.append(module(torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))))
    for number, (expected, actual) in enumerate(zip(*results, strict=True)):
        assert_near(actual, expected, f"result {number}")
    with pytest.raises(ValueError, match="exactly one quantiser, got 0"):
        lucidrains.Sequential(torch.nn.Linear(4, 8))


def test_rotating_one_vector_to_another():
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    source, target = torch.randn(2, 9, 8).requires_grad_(), torch.randn(2, 9, 8)
    weight = torch.randn(2, 9, 8)
    gradients = []
    for rotate in (rotate_to, lucidrains.rotate_to):
        rotated = rotate(source, target)
        assert_near(rotated, target, "value")
        gradients += torch.autograd.grad((rotated * weight).sum(), source)
    assert_near(gradients[1], gradients[0], "gradient")


@pytest.mark.parametrize("name", ["BinaryMapper", "EvoLFQ", "FSP", "HierarchicalVQ"])
def test_classes_left_out_say_what_comes_nearest(name):
    assert hasattr(package, name)
    with pytest.raises(NotImplementedError, match=f"{name} is not supported: .* nearest"):
        getattr(lucidrains, name)


def test_the_temperature_of_a_call_counts():
    theirs, ours = pair({"stochastic_sample_codes": True, "sample_codebook_temp": 0.0})
    assert_same_step(theirs, ours, torch.randn(LONG), seed=0, sample_codebook_temp=5.0)


def test_graphs_around_a_dropout_drop_as_many_quantisers():
    torch._dynamo.reset()
    eager, traced = (pair({"quantize_dropout": True, "num_quantizers": 4})[1] for _ in range(2))
    compiled = torch.compile(traced, backend="eager")
    for seed in range(3):
        x = torch.randn(SEQUENCE)
        torch.manual_seed(seed)
        expected = eager(x)
        torch.manual_seed(seed)
        assert_near(compiled(x), expected, f"step {seed}")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("beam", [{}, {"beam_size": 2}], ids=["plain", "beam"])
def test_losses_of_a_module_in_half_precision_are_float32(beam, training):
    theirs, ours = pair(beam)
    x = torch.randn(SEQUENCE, dtype=torch.bfloat16)
    expected = theirs.bfloat16().train(training)(x)[2]
    losses = ours.bfloat16().train(training)(x)[2]
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
