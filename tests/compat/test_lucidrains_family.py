"""Compares the classes of `compat.lucidrains` beside `VectorQuantize` with the package's."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as package
from helpers.drop_ins import assert_near, assert_same_step

from vqvae2_fast.compat import lucidrains

SEQUENCE, MAP = (2, 9, 6), (2, 6, 4, 5)
FSQ3 = {"levels": [8, 5, 4]}
RFSQ = {"levels": [8, 5, 3], "num_quantizers": 3}
SIM = {"dim": 6, "codebook_size": 20}
GRID = {
    "fsq": ("FSQ", FSQ3, (2, 9, 3)),
    "fsq_projected": ("FSQ", FSQ3 | {"dim": 6}, SEQUENCE),
    "fsq_without_bias": ("FSQ", FSQ3 | {"dim": 6, "projection_has_bias": False}, SEQUENCE),
    "fsq_map": ("FSQ", FSQ3 | {"dim": 6}, MAP),
    "fsq_channel_first": ("FSQ", FSQ3 | {"dim": 6, "channel_first": True}, (2, 6, 9)),
    "fsq_codebooks": ("FSQ", FSQ3 | {"num_codebooks": 2}, SEQUENCE),
    "fsq_codebooks_map": ("FSQ", FSQ3 | {"num_codebooks": 2}, MAP),
    "fsq_keep": ("FSQ", FSQ3 | {"keep_num_codebooks_dim": True}, (2, 9, 3)),
    "fsq_symmetric": ("FSQ", {"levels": [2, 5, 4], "preserve_symmetry": True}, (2, 9, 3)),
    "fsq_hard": ("FSQ", FSQ3 | {"bound_hard_clamp": True}, (2, 9, 3)),
    "fsq_hard_symmetric": (
        "FSQ",
        FSQ3 | {"bound_hard_clamp": True, "preserve_symmetry": True},
        (2, 9, 3),
    ),
    "fsq_noise": (
        "FSQ",
        {"levels": [5, 4], "preserve_symmetry": True, "noise_dropout": 0.5},
        (2, 9, 2),
    ),
    "fsq_rotated": ("FSQ", {"levels": [5, 5, 5], "orthogonal_rotation": True}, (2, 9, 3)),
    "fsq_without_indices": ("FSQ", FSQ3 | {"return_indices": False}, (2, 9, 3)),
    "residual_fsq": ("ResidualFSQ", RFSQ, (2, 9, 3)),
    "residual_fsq_projected": ("ResidualFSQ", RFSQ | {"dim": 6}, SEQUENCE),
    "residual_fsq_channel_first": ("ResidualFSQ", RFSQ | {"dim": 6, "is_channel_first": True}, MAP),
    "residual_fsq_dropout": ("ResidualFSQ", RFSQ | {"quantize_dropout": True}, (2, 9, 3)),
    "residual_fsq_dropout_multiple": (
        "ResidualFSQ",
        {
            "levels": [5, 3],
            "num_quantizers": 5,
            "quantize_dropout": True,
            "quantize_dropout_cutoff_index": 1,
            "quantize_dropout_multiple_of": 2,
        },
        (2, 9, 2),
    ),
    "residual_fsq_tanh": ("ResidualFSQ", RFSQ | {"bound_hard_clamp": False}, (2, 9, 3)),
    "residual_fsq_clamped": (
        "ResidualFSQ",
        RFSQ | {"bound_hard_clamp": False, "soft_clamp_input_value": [2.0, 2.0, 1.5]},
        (2, 9, 3),
    ),
    "grouped_residual_fsq": ("GroupedResidualFSQ", RFSQ | {"dim": 6, "groups": 2}, SEQUENCE),
    "grouped_residual_fsq_dropout": (
        "GroupedResidualFSQ",
        RFSQ | {"dim": 6, "groups": 2, "quantize_dropout": True},
        SEQUENCE,
    ),
    "lfq": ("LFQ", {"codebook_size": 64}, SEQUENCE),
    "lfq_dim": ("LFQ", {"dim": 6, "entropy_loss_weight": 0.3, "diversity_gamma": 2.0}, SEQUENCE),
    "lfq_projected": ("LFQ", {"codebook_size": 256, "dim": 6}, SEQUENCE),
    "lfq_commitment": ("LFQ", {"dim": 6, "commitment_loss_weight": 0.25}, SEQUENCE),
    "lfq_map": ("LFQ", {"codebook_size": 16, "dim": 6}, MAP),
    "lfq_codebooks": ("LFQ", {"codebook_size": 8, "num_codebooks": 2}, SEQUENCE),
    "lfq_keep": ("LFQ", {"codebook_size": 64, "keep_num_codebooks_dim": True}, SEQUENCE),
    "lfq_scaled": ("LFQ", {"dim": 6, "codebook_scale": 0.5}, SEQUENCE),
    "lfq_clamped": ("LFQ", {"dim": 6, "soft_clamp_input_value": 2.0}, SEQUENCE),
    "lfq_cosine": (
        "LFQ",
        {"codebook_size": 16, "dim": 6, "cosine_sim_project_in": True},
        SEQUENCE,
    ),
    "lfq_spherical": (
        "LFQ",
        {"codebook_size": 256, "dim": 6, "spherical": True, "commitment_loss_weight": 0.1},
        SEQUENCE,
    ),
    "lfq_spherical_map": ("LFQ", {"dim": 6, "spherical": True, "codebook_scale": 2.0}, MAP),
    "lfq_rotated": ("LFQ", {"dim": 6, "orthogonal_rotation": True}, SEQUENCE),
    "lfq_softplus": ("LFQ", {"dim": 6, "experimental_softplus_entropy_loss": True}, SEQUENCE),
    "lfq_fraction": ("LFQ", {"dim": 6, "frac_per_sample_entropy": 0.5}, SEQUENCE),
    "lfq_activation": (
        "LFQ",
        {"dim": 6, "straight_through_activation": torch.nn.Tanh()},
        SEQUENCE,
    ),
    "residual_lfq": ("ResidualLFQ", {"dim": 6, "codebook_size": 64, "num_quantizers": 3}, SEQUENCE),
    "residual_lfq_projected": (
        "ResidualLFQ",
        {
            "dim": 6,
            "codebook_size": 256,
            "num_quantizers": 2,
            "quantize_dropout": True,
            "soft_clamp_input_value": 3.0,
            "commitment_loss_weight": 0.25,
        },
        SEQUENCE,
    ),
    "grouped_residual_lfq": (
        "GroupedResidualLFQ",
        {"dim": 6, "groups": 2, "codebook_size": 16, "num_quantizers": 2},
        SEQUENCE,
    ),
    "sim_vq": ("SimVQ", SIM, SEQUENCE),
    "sim_vq_straight_through": ("SimVQ", SIM | {"rotation_trick": False}, SEQUENCE),
    "sim_vq_map": ("SimVQ", SIM | {"channel_first": True}, MAP),
    "sim_vq_weights": (
        "SimVQ",
        SIM | {"commitment_weight": 0.5, "input_to_quantize_commit_loss_weight": 2.0},
        SEQUENCE,
    ),
    "sim_vq_frozen_dim": ("SimVQ", SIM | {"frozen_codebook_dim": 3}, SEQUENCE),
    "sim_vq_init": ("SimVQ", SIM | {"init_fn": lambda codes: codes * 2}, SEQUENCE),
    "residual_sim_vq": ("ResidualSimVQ", SIM | {"num_quantizers": 3}, SEQUENCE),
    "residual_sim_vq_map": (
        "ResidualSimVQ",
        SIM | {"num_quantizers": 3, "channel_first": True, "quantize_dropout": True},
        MAP,
    ),
}


def pair(name: str, seed: int = 0) -> list[torch.nn.Module]:
    """The package's module and ours, made at equal states of the generator.

    LFQ in float64: the package's float32 has errors of 3e-5 in gradients of sharp entropies.
    """
    kind, arguments, _ = GRID[name]
    modules = []
    for source in (package, lucidrains):
        torch.manual_seed(seed)
        extra = {"force_quantization_f32": False} if "LFQ" in kind else {}
        module = getattr(source, kind)(**arguments, **extra)
        modules.append(module.double() if "LFQ" in kind else module)
    modules[1].load_state_dict(modules[0].state_dict())
    return modules


def inputs(name: str, *leading: int) -> torch.Tensor:
    kind, _, shape = GRID[name]
    return torch.randn(*leading, *shape).to(torch.float64 if "LFQ" in kind else torch.float32)


@pytest.mark.parametrize("name", GRID)
def test_five_training_steps_and_evaluation(name):
    theirs, ours = pair(name)
    rate = 1e-3 if "lfq" in name else 0.1
    optimisers = [torch.optim.SGD([*m.parameters(), torch.zeros(1)], rate) for m in (theirs, ours)]
    torch.manual_seed(1)
    batches = inputs(name, 6)
    for step in range(5):
        assert_same_step(theirs, ours, batches[step], seed=step)
        for optimiser in optimisers:
            optimiser.step()
    assert_same_step(theirs.eval(), ours.eval(), batches[5], seed=5)


@pytest.mark.parametrize("name", [name for name in GRID if "residual" in name])
def test_all_codes_and_outputs_of_indices(name):
    theirs, ours = (module.eval() for module in pair(name))
    x = inputs(name)
    indices = theirs(x)[1]
    if "is_channel_first" in GRID[name][1]:
        indices = indices.movedim(1, -1)  # the package's return_all_codes takes another dimension
    else:
        assert_same_step(theirs, ours, x, seed=0, return_all_codes=True)
    for method in ("get_codes_from_indices", "get_output_from_indices"):
        assert_near(getattr(ours, method)(indices), getattr(theirs, method)(indices), method)
    assert_near(ours.codebooks, theirs.codebooks, "codebooks")


@pytest.mark.parametrize(
    "name", [n for n, (kind, _, _) in GRID.items() if kind in ("FSQ", "LFQ", "SimVQ")]
)
def test_codes_of_indices(name):
    theirs, ours = (module.eval() for module in pair(name))
    indices = theirs(inputs(name))[1]
    if indices is None:
        indices = torch.randint(160, (2, 9))
    assert_near(ours.indices_to_codes(indices), theirs.indices_to_codes(indices), "codes")


@pytest.mark.parametrize(
    ("temperature", "mask"),
    [
        (1.0, torch.arange(18).view(2, 9) % 3 > 0),
        (10.0, torch.tensor([False, True])),
        (300.0, torch.arange(18).view(2, 9) % 3 > 0),
    ],
)
@pytest.mark.parametrize("name", ["lfq", "lfq_spherical", "lfq_codebooks"])
def test_entropies_of_lfq_at_other_temperatures_and_with_a_mask(name, temperature, mask):
    theirs, ours = pair(name)
    call = {"inv_temperature": temperature, "mask": mask, "return_loss_breakdown": True}
    assert_same_step(theirs, ours, inputs(name), seed=0, **call)


def test_lfq_trains_in_one_graph_of_any_length():
    torch.manual_seed(0)
    quantizer = lucidrains.LFQ(codebook_size=64, dim=6)
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (9, 7):
        x = torch.randn(2, length, 6, requires_grad=True)
        slopes = []
        for call in (quantizer, compiled):
            quantized, _, loss = call(x)
            slopes += torch.autograd.grad(quantized.square().sum() + loss, x)
        torch.testing.assert_close(slopes[1], slopes[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["fsq", "fsq_hard", "fsq_codebooks", "fsq_keep"])
def test_fsq_that_does_not_force_float32_is_the_packages_in_half_precision(name, dtype):
    kind, arguments, shape = GRID[name]
    x, weight = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for source in (package, lucidrains):
        module = getattr(source, kind)(**arguments, force_quantization_f32=False)
        leaf = x.clone().requires_grad_()
        quantized, indices = module(leaf)
        quantized.backward(weight)
        results.append((quantized, indices, module.quantize(x.unflatten(-1, (-1, 3))), leaf.grad))
    theirs, ours = results
    assert torch.equal(ours[1], theirs[1])
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)


def test_all_codes_of_maps_with_channels_first():
    """The package fails here."""
    module = lucidrains.ResidualFSQ(dim=3, **RFSQ, is_channel_first=True).eval()
    quantized, indices, codes = module(torch.randn(2, 3, 4, 3), return_all_codes=True)
    assert indices.shape == (2, 3, 4, 3)
    assert_near(codes.sum(0).movedim(-1, 1), quantized, "sum of the codes")


def test_fewer_indices_are_the_coarse_codes_if_dropout_was_trained():
    theirs, ours = (module.eval() for module in pair("residual_fsq_dropout"))
    indices = ours(torch.randn(2, 9, 3))[1][..., :2]
    actual = ours.get_output_from_indices(indices)
    assert_near(actual, theirs.get_output_from_indices(indices), "coarse")
    with pytest.raises(ValueError, match="only a quantiser with quantize_dropout does with fewer"):
        pair("residual_fsq")[1].get_codes_from_indices(indices)


def test_digits_of_fsq():
    theirs, ours = pair("fsq")
    indices = torch.arange(160)
    assert torch.equal(
        ours.indices_to_level_indices(indices), theirs.indices_to_level_indices(indices)
    )
    assert torch.equal(ours.codes_to_indices(ours.implicit_codebook), indices.int())
    assert_near(ours.implicit_codebook, theirs.implicit_codebook, "codebook")
