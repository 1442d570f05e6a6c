"""Quantisation over scales: the definition in plain PyTorch, learning, prefixes, graphs."""

from __future__ import annotations

import copy
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import vector_quantize_pytorch
from torch.utils.checkpoint import checkpoint

import vqvae2_fast as vq2
from vqvae2_fast.modules.multi_scale import _nearest_tick

K, D = 12, 4
SCALES = (1, (2, 3), (3, 4), (5, 6))
TOKENS = 1 + 6 + 12 + 30
SIZES = [(1, 1), (2, 3), (3, 4), (5, 6)]
MOVING = {"decay": 0.7, "restart": 0.5}
OPTIONS = {
    "shared": {},
    "own": {"shared_codebook": False},
    "phi": {"num_phi": 2},
    "bilinear": {"upsample": "bilinear"},
}


def made(name: str, scales=SCALES, **options) -> vq2.MultiScaleVQ:
    torch.manual_seed(0)
    return vq2.MultiScaleVQ(K, D, scales, **OPTIONS[name], **MOVING, **options)


def batches(count: int, size: int = 6) -> torch.Tensor:
    return torch.randn(count, size, 5, 6, D, generator=torch.Generator().manual_seed(0))


def trained(name: str) -> vq2.MultiScaleVQ:
    quantizer = made(name)
    for z in batches(3):
        quantizer(z)
    return quantizer


def codebook(quantizer: vq2.MultiScaleVQ, scale: int) -> torch.Tensor:
    return quantizer.quantizers[0 if quantizer.shared_codebook else scale].codebook


def defined(
    quantizer: vq2.MultiScaleVQ, z: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Algorithm 1 of https://arxiv.org/abs/2404.02905 on a map of channels first, in its words: of
    each scale the cells, the indices and the sum so far."""
    f = z.movedim(-1, 1).contiguous()
    f_rest, f_hat = f.clone(), torch.zeros_like(f)
    cells, indices, sums = [], [], []
    for scale, size in enumerate(SIZES):
        rest = F.interpolate(f_rest, size=size, mode="area").movedim(1, -1)
        distances = (rest[..., None, :].double() - codebook(quantizer, scale).double()).square()
        index = distances.sum(-1).argmin(-1)
        h = codebook(quantizer, scale)[index].movedim(-1, 1)
        h = F.interpolate(h, size=SIZES[-1], mode=quantizer.upsample)
        if quantizer.phi:
            phi = quantizer.phi[[0, 0, 1, 1][scale]]
            h = (1 - quantizer.phi_ratio) * h + quantizer.phi_ratio * phi(h)
        f_hat, f_rest = f_hat + h, f_rest - h
        cells.append(rest)
        indices.append(index)
        sums.append(f_hat.movedim(1, -1))
    return cells, indices, sums


@pytest.mark.parametrize("name", OPTIONS)
def test_codes_and_sums_are_those_of_the_definition(name):
    quantizer = trained(name).eval()
    z = torch.randn(40, 5, 6, D)
    with torch.no_grad():
        z_q, indices, _ = quantizer(z)
        _, expected, sums = defined(quantizer, z)
    maps = quantizer.maps(indices)
    assert [tuple(each.shape[1:]) for each in maps] == SIZES
    for each, index in zip(maps, expected, strict=True):
        assert torch.equal(each, index)
    torch.testing.assert_close(z_q, sums[-1])


@pytest.mark.parametrize("name", OPTIONS)
def test_the_first_scales_lead_to_the_partial_sums(name):
    quantizer = trained(name).eval()
    z = torch.randn(7, 5, 6, D)
    with torch.no_grad():
        z_q, indices, _ = quantizer(z)
        sums = defined(quantizer, z)[2]
        for count, expected in zip((1, 7, 19, TOKENS), sums, strict=True):
            torch.testing.assert_close(quantizer.lookup(indices[:, :count]), expected)
        assert torch.equal(quantizer.lookup(indices), z_q)
    assert torch.equal(quantizer.encode(z), indices)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)], ids=str)
def test_results_have_the_leading_shape(shape):
    quantizer = trained("phi").eval()
    z = torch.randn(*shape, 5, 6, D)
    z_q, indices, loss = quantizer(z)
    assert z_q.shape == quantizer.lookup(indices).shape == z.shape
    assert indices.shape == quantizer.encode(z).shape == (*shape, TOKENS)
    assert loss.shape == ()
    assert loss.isfinite()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_loss_and_its_gradients_are_those_of_the_definition(name):
    quantizer = trained(name).eval()
    z = torch.randn(6, 5, 6, D, requires_grad=True)
    other = z.detach().clone().requires_grad_()
    z_q, _, loss = quantizer(z)
    weight = torch.randn_like(z)
    ((z_q * weight).sum() + loss).backward()
    own = [parameter.grad.clone() for parameter in quantizer.parameters()]
    quantizer.zero_grad()
    sums = defined(quantizer, other.detach())[2]
    expected = sum(0.25 * (other - each.detach()).square().mean() for each in sums) / len(sums)
    if quantizer.phi:
        expected = expected + sum((other.detach() - each).square().mean() for each in sums) / 4
    ((other * weight).sum() + expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(z.grad, other.grad)
    assert len(own) == (4 if name == "phi" else 0)
    for gradient, parameter in zip(own, quantizer.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_rotation_turns_the_gradient_onto_the_sum():
    quantizer = made("shared", gradient="rotation")
    quantizer(batches(1)[0])
    quantizer.eval()
    z = batches(1)[0].requires_grad_()
    z_q, indices, _ = quantizer(z)
    z_q.square().sum().backward()
    other = z.detach().clone().requires_grad_()
    rows = quantizer.lookup(indices)
    vq2.modules.quantizer.rotate_gradient(other, rows).square().sum().backward()
    torch.testing.assert_close(z_q, rows)
    torch.testing.assert_close(z.grad, other.grad)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("update", ["forward", "step"])
def test_a_codebook_averages_the_cells_of_its_scales(name, update):
    quantizer = made(name, update=update, ema_start="one")
    for book in quantizer.quantizers:
        book.restart = 0.0
    quantizer(batches(1)[0])
    z = batches(2)[1]
    if update == "step":
        for book in quantizer.quantizers:
            book.update_codebook_()
    cells, indices, _ = defined(quantizer, z)
    books = [[number] for number in range(4)] if name == "own" else [range(4)]
    expected = []
    for book, scales in zip(quantizer.quantizers, books, strict=True):
        rows = torch.cat([cells[scale].reshape(-1, D) for scale in scales])
        index = torch.cat([indices[scale].flatten() for scale in scales])
        counts = torch.zeros(K).index_add_(0, index, torch.ones(len(index)))
        sums = torch.zeros(K, D).index_add_(0, index, rows)
        sizes = 0.7 * book.cluster_size + 0.3 * counts
        averages = 0.7 * book.embed_avg + 0.3 * sums
        smoothed = (sizes + 1e-5) / (sizes.sum() + K * 1e-5) * sizes.sum()
        expected.append((sizes, averages / smoothed[:, None]))
    quantizer(z)
    for book, (sizes, codes) in zip(quantizer.quantizers, expected, strict=True):
        if update == "step":
            book.update_codebook_()
        torch.testing.assert_close(book.cluster_size, sizes)
        torch.testing.assert_close(book.codebook, codes)


def test_a_shared_codebook_starts_from_the_cells_of_all_scales():
    """A batch of two maps has two cells of 1×1: fewer than codes."""
    quantizer = made("shared")
    z = batches(1, size=2)[0]
    quantizer(z)
    f = z.movedim(-1, 1)
    rows = []
    for size in SIZES:
        cells = F.interpolate(f, size=size, mode="area")
        f = f - F.interpolate(cells, size=SIZES[-1], mode="bicubic")
        rows.append(cells.movedim(1, -1).flatten(1, 2))
    book = vq2.VectorQuantizerEMA(K, D, update="step")
    book(torch.cat(rows, 1))
    other = made("shared", update="step")
    other(z)
    torch.testing.assert_close(other.quantizers[0].codebook, book.codebook)
    assert len(other.quantizers[0].codebook.unique(dim=0)) > 2


def test_codebooks_of_their_own_start_from_what_the_coarser_leave():
    quantizer = made("own", update="step")
    z = batches(1)[0]
    quantizer(z)
    for scale, cells in enumerate(defined(quantizer, z)[0]):
        book = vq2.VectorQuantizerEMA(K, D, update="step", stream=scale << 8)
        book(cells)
        torch.testing.assert_close(quantizer.quantizers[scale].codebook, book.codebook)


@pytest.mark.parametrize("name", ["shared", "own"])
def test_a_start_from_several_parts_is_that_of_the_whole_batch(name):
    from vqvae2_fast.ops._batch_part import BatchPart

    whole, parts = made(name, update="step"), made(name, update="step")
    z = batches(1)[0]
    whole(z)
    assert parts.must_start()
    parts.start_(list(z.split(3)), [BatchPart(0, 6), BatchPart(3, 6)])
    assert not parts.must_start()
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_all_scales_train_to_less_error_with_all_codes_in_use():
    torch.manual_seed(0)
    quantizer = vq2.MultiScaleVQ(32, D, (1, 2, 4, 8))
    coarse = torch.randn(64, 2, 2, D).movedim(-1, 1)
    z = F.interpolate(coarse, size=(8, 8)).movedim(1, -1) + 0.1 * torch.randn(64, 8, 8, D)
    for _ in range(10):
        quantizer(z)
    quantizer.eval()
    indices = quantizer.encode(z)
    errors = [(z - quantizer.lookup(indices[:, :n])).square().mean() for n in (1, 5, 21, 85)]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert len(indices.unique()) == 32


@pytest.mark.parametrize("name", OPTIONS)
def test_a_state_dict_makes_the_same_quantiser(name):
    quantizer, other = trained(name), made(name)
    other.load_state_dict(quantizer.state_dict())
    for z in batches(2):
        for one, two in zip(quantizer(z), other(z), strict=True):
            torch.testing.assert_close(one, two)
    torch.testing.assert_close(other.state_dict(), quantizer.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["shared", "own", "phi"])
def test_training_steps_are_one_graph(name):
    eager, other = made(name, (1, (5, 6))), made(name, (1, (5, 6)))
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for z in batches(3):
        leaves = [z.clone().requires_grad_() for _ in range(2)]
        for call, leaf in zip((eager, compiled), leaves, strict=True):
            z_q, _, loss = call(leaf)
            (z_q.square().sum() + loss).backward()
        torch.testing.assert_close(leaves[1].grad, leaves[0].grad)
    torch.testing.assert_close(other.state_dict(), eager.state_dict())
    assert all(book.initialised for book in other.quantizers)


@pytest.mark.parametrize("name", ["shared", "own", "phi"])
@pytest.mark.parametrize("update", ["forward", "step"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_does_not_learn_twice(name, update, use_reentrant):
    plain, recomputed = made(name, update=update), made(name, update=update)
    gradients = []
    for quantizer in (plain, recomputed):
        z = batches(1)[0].requires_grad_()

        def run(x, quantizer=quantizer):
            z_q, _, loss = quantizer(x)
            return z_q.square().sum() + loss

        if quantizer is plain:
            run(z).backward()
        else:
            checkpoint(run, z, use_reentrant=use_reentrant).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(recomputed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("num_phi", [0, 1, 2])
def test_codes_are_those_of_vector_quantize_pytorch(num_phi):
    theirs = vector_quantize_pytorch.HierarchicalVQ(
        dim=D,
        codebook_size=K,
        scales=SIZES,
        share_quant_resi=num_phi or 1,
        quant_resi=0.5 if num_phi else 0.0,
        channel_first=False,
        accept_image_fmap=True,
    ).eval()
    ours = vq2.MultiScaleVQ(K, D, SIZES, num_phi=num_phi, upsample="bilinear")
    z = batches(1)[0]
    ours(z)
    ours.eval()
    theirs.vq._codebook.embed.copy_(ours.quantizers[0].codebook[None])
    theirs.vq._codebook.initted.fill_(True)
    layers = [theirs.phi_shared] if theirs.phi_levels is None else theirs.phi_levels
    for own, other in zip(ours.phi, layers, strict=False):
        own.load_state_dict(other.conv.state_dict())
    with torch.no_grad():
        z_q, indices, _ = ours(z)
        expected, maps, _ = theirs(z)
    for one, two in zip(ours.maps(indices), maps, strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(z_q, expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("scales", [1, 2, 4, 10])
def test_convolutions_are_shared_as_in_var(count, scales):
    ends = (1 / 3 / count, 1 - 1 / 3 / count) if count == 4 else (1 / 2 / count, 1 - 1 / 2 / count)
    ticks = np.linspace(*ends, count)
    for scale in range(scales):
        position = scale / (scales - 1) if scales > 1 else 0.0
        expected = np.argmin(np.abs(ticks - position)).item()
        assert _nearest_tick(scale, scales, count) == expected


def test_nothing_is_quantised_while_quantisation_waits():
    quantizer = made("own", update="step", quantize_after=1)
    z = batches(1)[0]
    z_q, indices, loss = quantizer(z)
    assert torch.equal(z_q, z)
    assert indices.shape == (6, TOKENS)
    assert not indices.any()
    assert loss == 0
    for book in quantizer.quantizers:
        book.update_codebook_()
    assert not torch.equal(quantizer(z)[0], z)


def test_a_quantiser_is_built_and_called_with_tensors_without_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        z_q, indices, loss = made("phi")(torch.empty(2, 5, 6, D))
    assert z_q.shape == (2, 5, 6, D)
    assert indices.shape == (2, TOKENS)
    assert loss.shape == ()


def test_a_map_with_nan_moves_no_code():
    quantizer = trained("shared")
    z = batches(1)[0].clone()
    z[2, 1, 1, 0] = torch.nan
    indices = quantizer(z)[1]
    assert quantizer.quantizers[0].codebook.isfinite().all()
    assert indices.min() >= 0


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_copy_and_a_transform_leave_it_as_it_was():
    quantizer = copy.deepcopy(trained("shared")).eval()
    z = batches(1)[0]
    expected, _, _ = quantizer(z)
    perplexity = quantizer.perplexity
    torch.testing.assert_close(torch.func.vmap(lambda x: quantizer(x)[0])(z), expected)
    assert quantizer.perplexity is perplexity


@pytest.mark.parametrize(
    "scales", [(), (2, 1), (1, 2, 2), (0, 2), ((1, 2), (2, 1)), ((1, 2, 3),), (4, (4, 3))], ids=str
)
def test_scales_that_do_not_grow_are_refused(scales):
    with pytest.raises(ValueError, match="scales that grow, .*" + re.escape(str(list(scales)))):
        vq2.MultiScaleVQ(K, D, scales)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_phi": 5}, "expected num_phi to be an integer from 0 to 4, got 5"),
        ({"metric": "cosine"}, "metric='euclidean', got 'cosine'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vq2.MultiScaleVQ(K, D, SCALES, **options)


@pytest.mark.parametrize("shape", [(5, D), (6, 5, D), (2, 4, 6, D), (2, 5, 6, D + 1)], ids=str)
def test_maps_of_another_size_are_refused(shape):
    for call in (made("shared"), made("shared").encode):
        with pytest.raises(ValueError, match=rf"expected z \[.*D\] .* got \[{shape[0]}, "):
            call(torch.randn(shape))


@pytest.mark.parametrize("length", [0, 2, TOKENS - 1, TOKENS + 1])
def test_indices_that_end_within_a_scale_are_refused(length):
    quantizer = made("shared")
    with pytest.raises(ValueError, match=rf"T one of 1, 7, 19, {TOKENS}, .* got \[2, {length}\]"):
        quantizer.lookup(torch.zeros(2, length, dtype=torch.int64))
    with pytest.raises(ValueError, match=rf"expected indices in 0..{K - 1}, got .*{K}"):
        quantizer.lookup(torch.full((2, TOKENS), K))
