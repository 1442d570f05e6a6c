"""Codes and outputs that `compat.lucidrains` returns for given indices."""

from __future__ import annotations

import copy

import pytest
import torch

from vqvae2_fast.compat.lucidrains import GroupedResidualVQ, ResidualVQ, VectorQuantize

BASE = {"dim": 8, "num_quantizers": 3, "codebook_size": 12}


@pytest.mark.parametrize("dropout", [True, False])
def test_more_quantisers_than_there_are_are_refused(dropout):
    module = ResidualVQ(**BASE, quantize_dropout=dropout)
    with pytest.raises(ValueError, match=r"at most 3 quantisers, got \[2, 5, 4\]"):
        module.get_codes_from_indices(torch.zeros(2, 5, 4, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_index_below_minus_one_is_refused(dtype):
    indices = torch.tensor([[[0, -1, -2]]], dtype=dtype)
    with pytest.raises(ValueError, match=r"-1 for none, got -2"):
        ResidualVQ(**BASE).get_codes_from_indices(indices)


def test_codes_of_indices_are_one_graph():
    torch._dynamo.reset()
    module, indices = ResidualVQ(**BASE), torch.tensor([[[0, 5, -1]]])
    codes = torch.compile(module.get_codes_from_indices, fullgraph=True, backend="eager")(indices)
    assert torch.equal(codes, module.get_codes_from_indices(indices))


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ({"accept_image_fmap": True}, (2, 8, 3, 4)),
        ({"accept_3d_fmap": True}, (2, 8, 2, 3, 4)),
        ({"channel_last": False}, (2, 8, 4)),
        ({"channel_last": False}, (2, 8)),
    ],
)
@pytest.mark.parametrize(
    "heads", [{}, {"heads": 2}, {"heads": 2, "separate_codebook_per_head": True}]
)
def test_outputs_of_indices_have_channels_where_the_input_has_them(layout, shape, heads):
    torch.manual_seed(0)
    module = VectorQuantize(8, 12, codebook_dim=3, **layout, **heads).eval()
    quantized, indices, _ = module(torch.randn(shape))
    torch.testing.assert_close(module.get_output_from_indices(indices), quantized)


@pytest.mark.parametrize(
    "heads", [{}, {"heads": 2}, {"heads": 2, "separate_codebook_per_head": True}]
)
def test_indices_of_masked_vectors_do_not_move_the_codebook(heads):
    torch.manual_seed(0)
    module, x = VectorQuantize(8, 12, **heads), torch.randn(2, 9, 8)
    mask = torch.arange(9) < torch.tensor([[4], [7]])
    indices = module.eval()(x, mask=mask)[1]
    expected = copy.deepcopy(module)
    expected.update_indices(x, indices, mask=mask)
    module.update_indices(x, indices)
    assert torch.equal(module.codebook, expected.codebook)
    assert torch.equal(module._codebook.cluster_size, expected._codebook.cluster_size)


def test_updating_by_an_index_below_minus_one_is_refused():
    with pytest.raises(RuntimeError, match="expected indices in 0..11, got"):
        VectorQuantize(8, 12).update_indices(torch.randn(1, 1, 8), torch.tensor([[-2]]))


def test_writing_to_returned_indices_leaves_the_perplexity():
    torch.manual_seed(0)
    module = VectorQuantize(8, 12)
    indices = module(torch.randn(2, 9, 8))[1]
    before = module.perplexity, module.usage
    indices.fill_(0)
    assert (module.perplexity, module.usage) == before


def test_one_head_with_a_codebook_of_its_own_returns_its_codes():
    torch.manual_seed(0)
    module = VectorQuantize(8, 12, separate_codebook_per_head=True).eval()
    quantized, indices, _ = module(torch.randn(2, 9, 8))
    assert torch.equal(module.get_codes_from_indices(indices), quantized)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [({"accept_image_fmap": True}, (2, 8, 3, 4)), ({"channel_last": False}, (2, 8, 5))],
)
def test_outputs_of_groups_are_joined_along_the_last_dimension(layout, shape):
    module = GroupedResidualVQ(**BASE, groups=2, **layout).eval()
    quantized, indices, _ = module(torch.randn(shape))
    outputs = module.get_output_from_indices(indices)
    torch.testing.assert_close(outputs.movedim(-1, 1), quantized)
