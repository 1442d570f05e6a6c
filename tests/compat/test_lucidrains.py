"""Compares `compat.lucidrains` with the package itself."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import vector_quantize_pytorch
from helpers.drop_ins import assert_near, assert_same_step

from vqvae2_fast.compat.lucidrains import VectorQuantize, codebook

same_step = partial(assert_same_step, return_loss_breakdown=True)

SEQUENCE, LONG = (2, 9, 12), (2, 40, 12)
LEARNABLE = {"learnable_codebook": True, "ema_update": False}


def sgd(weights) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, 0.1)


GRID = {
    "defaults": ({}, SEQUENCE),
    "decay_and_eps": ({"decay": 0.95, "eps": 1e-3}, SEQUENCE),
    "one_token": ({}, (7, 12)),
    "channel_first": ({"channel_last": False}, (2, 12, 9)),
    "image": ({"accept_image_fmap": True}, (2, 12, 4, 5)),
    "volume": ({"accept_3d_fmap": True}, (2, 12, 2, 3, 2)),
    "straight_through": ({"rotation_trick": False}, SEQUENCE),
    "commitment_weight": ({"commitment_weight": 0.25}, SEQUENCE),
    "no_commitment": ({"commitment_weight": 0.0}, SEQUENCE),
    "projection": ({"codebook_dim": 5}, SEQUENCE),
    "projection_layernorm": ({"codebook_dim": 5, "layernorm_after_project_in": True}, SEQUENCE),
    "cosine": ({"use_cosine_sim": True}, SEQUENCE),
    "cosine_image_projection": (
        {"use_cosine_sim": True, "accept_image_fmap": True, "codebook_dim": 4},
        (2, 12, 4, 5),
    ),
    "kmeans": ({"kmeans_init": True}, LONG),
    "kmeans_iterations": ({"kmeans_init": True, "kmeans_iters": 3}, LONG),
    "kmeans_few_vectors": ({"kmeans_init": True}, SEQUENCE),
    "kmeans_cosine": ({"kmeans_init": True, "use_cosine_sim": True}, LONG),
    "dead_codes": ({"threshold_ema_dead_code": 2}, LONG),
    "dead_codes_cosine": ({"threshold_ema_dead_code": 2, "use_cosine_sim": True}, LONG),
    "dead_codes_without_ema": ({"threshold_ema_dead_code": 1, "ema_update": False}, LONG),
    "no_ema": ({"ema_update": False}, SEQUENCE),
    "frozen": ({"freeze_codebook": True}, SEQUENCE),
    "heads": ({"heads": 3, "codebook_dim": 4}, SEQUENCE),
    "heads_projection": ({"heads": 2, "codebook_dim": 5}, SEQUENCE),
    "heads_image": ({"heads": 3, "codebook_dim": 4, "accept_image_fmap": True}, (2, 12, 4, 5)),
    "heads_apart": ({"heads": 3, "codebook_dim": 4, "separate_codebook_per_head": True}, SEQUENCE),
    "heads_apart_everything": (
        {
            "heads": 3,
            "codebook_dim": 4,
            "separate_codebook_per_head": True,
            "kmeans_init": True,
            "threshold_ema_dead_code": 2,
            "accept_image_fmap": True,
            "use_cosine_sim": True,
        },
        (2, 12, 5, 6),
    ),
    "no_gradient_to_input": ({"route_gradients_to_input": False}, SEQUENCE),
    "learnable": (LEARNABLE, SEQUENCE),
    "learnable_straight_through": (LEARNABLE | {"rotation_trick": False}, SEQUENCE),
    "learnable_unrouted": (LEARNABLE | {"route_gradients_to_input": False}, SEQUENCE),
    "learnable_kmeans_dead_codes": (
        LEARNABLE | {"kmeans_init": True, "threshold_ema_dead_code": 2},
        LONG,
    ),
    "learnable_heads": (
        LEARNABLE | {"heads": 3, "codebook_dim": 4, "separate_codebook_per_head": True},
        SEQUENCE,
    ),
    "in_place": (LEARNABLE | {"in_place_codebook_optimizer": sgd}, SEQUENCE),
    "in_place_by_hand": (
        LEARNABLE | {"in_place_codebook_optimizer": sgd, "manual_in_place_optimizer_update": True},
        SEQUENCE,
    ),
    "orthogonal": ({"orthogonal_reg_weight": 10.0}, SEQUENCE),
    "orthogonal_cosine": ({"orthogonal_reg_weight": 10.0, "use_cosine_sim": True}, SEQUENCE),
    "orthogonal_active": (
        {"orthogonal_reg_weight": 10.0, "orthogonal_reg_active_codes_only": True},
        SEQUENCE,
    ),
    "orthogonal_some": (
        {
            "orthogonal_reg_weight": 10.0,
            "orthogonal_reg_max_codes": 8,
            "accept_image_fmap": True,
            "heads": 3,
            "codebook_dim": 4,
            "separate_codebook_per_head": True,
        },
        (2, 12, 4, 5),
    ),
    "orthogonal_unrouted": (
        {"orthogonal_reg_weight": 10.0, "route_gradients_to_input": False},
        SEQUENCE,
    ),
    "manual_ema": ({"manual_ema_update": True}, SEQUENCE),
    "manual_ema_dead_codes": ({"manual_ema_update": True, "threshold_ema_dead_code": 2}, LONG),
    "stochastic": ({"stochastic_sample_codes": True, "sample_codebook_temp": 0.1}, SEQUENCE),
    "stochastic_heads": (
        {"stochastic_sample_codes": True, "heads": 3, "codebook_dim": 4, "use_cosine_sim": True},
        SEQUENCE,
    ),
    "diversity": ({"codebook_diversity_loss_weight": 0.3}, SEQUENCE),
    "diversity_temperature": (
        {
            "codebook_diversity_loss_weight": 0.3,
            "codebook_diversity_temperature": 2.0,
            "heads": 2,
            "codebook_dim": 6,
        },
        SEQUENCE,
    ),
    "diversity_learnable": (LEARNABLE | {"codebook_diversity_loss_weight": 0.3}, SEQUENCE),
    "directional": ({"directional_reparam": True, "threshold_ema_dead_code": 1}, LONG),
    "cross_entropy": ({"commitment_use_cross_entropy_loss": True}, SEQUENCE),
    "cross_entropy_heads": (
        {"commitment_use_cross_entropy_loss": True, "heads": 3, "codebook_dim": 4},
        SEQUENCE,
    ),
}
NUM_CODES = 20


def pair(arguments: dict, seed: int = 0):
    """The package's module and ours, made at equal states of the generator."""
    modules = []
    for kind in (vector_quantize_pytorch.VectorQuantize, VectorQuantize):
        torch.manual_seed(seed)
        modules.append(kind(12, NUM_CODES, **arguments))
    return modules


@pytest.mark.parametrize("name", GRID)
def test_five_training_steps_and_evaluation(name):
    arguments, shape = GRID[name]
    # The softmax of this loss multiplies distances by 100, and their roundings with them: the
    # gradients of this package and of theirs part by 2.9e-5 on an Intel processor.
    tolerance = 4e-5 if name == "diversity_learnable" else 2e-5
    theirs, ours = pair(arguments)
    optimisers = [torch.optim.SGD([*m.parameters(), torch.zeros(1)], 0.1) for m in (theirs, ours)]
    torch.manual_seed(1)
    batches = torch.randn(6, *shape)
    for step in range(5):
        same_step(theirs, ours, batches[step], seed=step, tolerance=tolerance)
        for optimiser in optimisers:
            optimiser.step()
    same_step(theirs.eval(), ours.eval(), batches[5], seed=5)


@pytest.mark.parametrize(
    "name", ["defaults", "cosine", "heads_apart", "projection", "image", "learnable"]
)
def test_state_dicts_load_both_ways(name):
    arguments, shape = GRID[name]
    theirs, ours = pair(arguments)
    other_theirs, other_ours = pair(arguments, seed=7)
    other_ours.load_state_dict(theirs.state_dict(), strict=True)
    other_theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.manual_seed(1)
    same_step(theirs, other_ours, torch.randn(shape), seed=0)


@pytest.mark.parametrize("padding", [True, False], ids=["zeros", "input"])
@pytest.mark.parametrize("by_lens", [True, False], ids=["lens", "mask"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"use_cosine_sim": True}, {"kmeans_init": True}, {"threshold_ema_dead_code": 2}],
    ids=["defaults", "cosine", "kmeans", "dead_codes"],
)
def test_masked_sequences(arguments, by_lens, padding):
    theirs, ours = pair({**arguments, "return_zeros_for_masked_padding": padding})
    lens = torch.tensor([40, 23])
    call = {"lens": lens} if by_lens else {"mask": torch.arange(40) < lens[:, None]}
    torch.manual_seed(1)
    for step in range(5):
        same_step(theirs, ours, torch.randn(LONG), seed=step, **call)
    same_step(theirs.eval(), ours.eval(), torch.randn(LONG), seed=5, **call)


@pytest.mark.parametrize(
    ("made", "call"),
    [
        ({}, {"freeze_codebook": True}),
        ({}, {"ema_update": False}),
        ({"freeze_codebook": True}, {"freeze_codebook": False}),
    ],
    ids=str,
)
def test_arguments_of_one_call(made, call):
    theirs, ours = pair(made)
    torch.manual_seed(1)
    before = ours.codebook.clone()
    same_step(theirs, ours, torch.randn(SEQUENCE), seed=0, **call)
    assert torch.equal(ours.codebook, before) == (not made)


@pytest.mark.parametrize("options", [{"topk": 2}, {"indices": torch.zeros(SEQUENCE[:-1]).long()}])
def test_a_module_in_half_precision_computes_distances(options):
    _, ours = pair({})
    ours = ours.half().eval()
    found = ours(torch.randn(SEQUENCE).half(), **options)
    assert found[0].dtype == torch.float16


def test_half_precision_input_keeps_its_dtype():
    theirs, ours = pair({})
    x = torch.randn(SEQUENCE).bfloat16()
    for module in (theirs, ours):
        assert module(x)[0].dtype == torch.bfloat16
    assert torch.equal(theirs(x)[1], ours(x)[1])


@pytest.mark.parametrize(
    "name", ["defaults", "channel_first", "image", "heads", "heads_apart", "projection"]
)
def test_codes_and_outputs_from_indices(name):
    arguments, shape = GRID[name]
    theirs, ours = pair(arguments)
    torch.manual_seed(1)
    indices = ours.eval()(torch.randn(shape))[1]
    for method in ("get_codes_from_indices", "get_output_from_indices"):
        expected = getattr(theirs, method)(indices)
        assert_near(getattr(ours, method)(indices), expected, method)


@pytest.mark.parametrize(
    "name", ["defaults", "image", "channel_first", "projection", "heads_apart"]
)
def test_evaluation_returns_exactly_the_codes(name):
    arguments, shape = GRID[name]
    ours = VectorQuantize(12, NUM_CODES, **arguments).eval()
    quantized, indices, _ = ours(torch.randn(shape))
    if name == "projection":  # channels last: the projection can act on the codes
        assert_near(quantized, ours.get_output_from_indices(indices), "output")
    else:
        assert torch.equal(quantized, ours.get_codes_from_indices(indices))


@pytest.mark.parametrize("name", ["defaults", "image", "heads", "heads_apart"])
def test_updating_by_given_indices(name):
    arguments, shape = GRID[name]
    theirs, ours = pair(arguments)
    torch.manual_seed(1)
    x = torch.randn(shape)
    indices = ours.eval()(x)[1]
    if name == "image":
        # The package flattens given image indices correctly only for separate heads.
        indices = indices.view(2, 4, 5)
    for module in (theirs.train(), ours.train()):
        module.update_ema_indices(x, indices)
    assert_near(ours.codebook, theirs.codebook, "codebook")


def test_expiring_by_given_vectors():
    theirs, ours = pair({"threshold_ema_dead_code": 2})
    torch.manual_seed(1)
    x = torch.randn(1, 40, 12)
    for module in (theirs, ours):
        torch.manual_seed(2)
        module.expire_codes_(x)
    assert torch.equal(ours.codebook, theirs.codebook)


def test_more_dead_codes_than_vectors_replaces_as_many_as_there_are():
    torch.manual_seed(0)
    ours = VectorQuantize(12, NUM_CODES, threshold_ema_dead_code=2)
    before = ours.codebook.clone()
    x = torch.randn(1, 6, 12)
    ours.expire_codes_(x)
    changed = (ours.codebook != before).any(1)
    assert int(changed.sum()) == 6
    rows = {tuple(row.tolist()) for row in x[0]}
    assert {tuple(row.tolist()) for row in ours.codebook[changed]} == rows


@pytest.mark.parametrize("waits", [False, True], ids=["cpu", "as_on_a_gpu"])
def test_few_vectors_that_are_enough_go_to_the_dead_codes_in_the_packages_order(waits, monkeypatch):
    monkeypatch.setattr(codebook, "reading_synchronises", lambda _: waits)
    theirs, ours = pair({"threshold_ema_dead_code": 2})
    torch.manual_seed(1)
    x, drawn = torch.randn(1, 6, 12), []
    for module in (theirs, ours):
        module._codebook.cluster_size[0, 3:] = 5
        torch.manual_seed(2)
        module.expire_codes_(x)
        drawn.append(torch.rand(()))
    assert torch.equal(ours.codebook, theirs.codebook)
    assert waits or drawn[0] == drawn[1]


def test_cosine_takes_the_largest_product_for_codes_of_any_length():
    """Codes of k-means can be zero: an empty cluster's."""
    theirs, ours = pair({"use_cosine_sim": True})
    torch.manual_seed(1)
    codes = torch.randn(NUM_CODES, 12) * torch.logspace(-2, 2, NUM_CODES)[:, None]
    codes[5] = 0
    for module in (theirs, ours):
        module.codebook = codes
    same_step(theirs.eval(), ours.eval(), torch.randn(LONG), seed=0)


def test_perplexity_and_usage_of_the_latest_forward():
    ours = VectorQuantize(12, NUM_CODES).eval()
    ours(ours.codebook[:4][None])
    assert float(ours.perplexity) == pytest.approx(4, rel=1e-5)
    assert float(ours.usage) == pytest.approx(4 / NUM_CODES)
    ours(ours.codebook[:4][None], lens=torch.tensor([2]))
    assert float(ours.usage) == pytest.approx(2 / NUM_CODES)


def test_a_transform_leaves_a_module_that_can_be_copied():
    ours = VectorQuantize(6, NUM_CODES, heads=2, codebook_dim=3, separate_codebook_per_head=True)
    x = torch.randn(4, 9, 6)
    ours.eval()(x)
    expected = ours.perplexity
    torch.func.vmap(lambda x: ours(x)[0])(x[:, None])
    torch.testing.assert_close(copy.deepcopy(ours).perplexity, expected)


def test_mask_with_heads_and_projection_works_where_the_package_does_not():
    theirs, ours = pair({"heads": 2, "codebook_dim": 5})
    x, lens = torch.randn(SEQUENCE), torch.tensor([9, 4])
    with pytest.raises((RuntimeError, IndexError)):
        theirs(x, lens=lens)
    quantized, indices, loss = ours(x, lens=lens)
    assert (indices[1, 4:] == -1).all()
    assert (quantized[1, 4:] == 0).all()
    assert loss > 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"accept_image_fmap": True},
        {"use_cosine_sim": True},
        {"orthogonal_reg_weight": 0.1},
        LEARNABLE | {"freeze_codebook": True},
    ],
)
def test_the_best_k_codes(arguments, training):
    theirs, ours = (module.train(training) for module in pair(arguments))
    shape = (2, 12, 3, 4) if arguments.get("accept_image_fmap") else SEQUENCE
    same_step(theirs, ours, torch.randn(shape), seed=0, topk=3)


@pytest.mark.parametrize("cosine", [False, True])
def test_the_best_code_is_the_one_that_a_forward_without_topk_finds(cosine):
    _, ours = pair({"use_cosine_sim": cosine})
    codes = ours.eval().codebook
    middle = (codes[:-1] + codes[1:]) / 2  # whose distances float32 cannot tell apart
    for topk in (1, 2):
        assert torch.equal(ours(middle)[1], ours(middle, topk=topk)[1][:, 0])


def test_the_best_k_codes_of_masked_and_single_vectors():
    theirs, ours = pair({})
    mask = torch.rand(2, 9) < 0.6
    same_step(theirs, ours, torch.randn(SEQUENCE), seed=0, topk=3, mask=mask)
    same_step(theirs.eval(), ours.eval(), torch.randn(5, 12), seed=0, topk=40)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "arguments", [{}, {"use_cosine_sim": True}, {"heads": 3, "codebook_dim": 4}, LEARNABLE]
)
def test_cross_entropy_of_given_codes(arguments, training):
    theirs, ours = (module.train(training) for module in pair(arguments))
    shape = (2, 9, 3) if "heads" in arguments else (2, 9)
    codes = torch.randint(-1, NUM_CODES, shape)
    x = torch.randn(SEQUENCE)
    results, gradients = [], []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        quantized, loss = module(leaf, indices=codes)
        loss.backward()
        results.append((quantized, loss))
        gradients.append(leaf.grad)
    assert_near(results[1][0], results[0][0], "quantized")
    assert_near(results[1][1], results[0][1], "loss")
    assert_near(gradients[1], gradients[0], "gradient")


def test_averages_become_codes_by_hand():
    theirs, ours = pair({"manual_ema_update": True})
    same_step(theirs, ours, torch.randn(SEQUENCE), seed=0)
    before = ours.codebook.clone()
    for module in (theirs, ours):
        module._codebook.update_ema()
    assert not torch.equal(ours.codebook, before)
    assert_near(ours.codebook, theirs.codebook, "codebook")
