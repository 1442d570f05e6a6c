"""What all quantisers have in common: shapes, dtypes, gradients, indices, graphs."""

from __future__ import annotations

import copy
import io
import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import vqvae2_fast as vq2
from vqvae2_fast.modules import MultiHeadVQ, RandomProjectionQuantizer, VectorQuantizer
from vqvae2_fast.modules.quantizer_interface import join_codes, perplexity_of, split_codes

if TYPE_CHECKING:
    from collections.abc import Callable

D = 6
MAKE = {
    "ema": lambda: vq2.VectorQuantizerEMA(16, D),
    "gradient": lambda: VectorQuantizer(16, D),
    "gradient_cosine": lambda: VectorQuantizer(16, D, metric="cosine"),
    "direction": lambda: VectorQuantizer(16, D, metric="direction"),
    "gradient_rotation": lambda: VectorQuantizer(16, D, gradient="rotation"),
    "simvq": lambda: vq2.SimVQ(16, D),
    "bridge": lambda: vq2.VQBridge(16, D, codes_per_token=4, hidden_dim=8),
    "ibq": lambda: vq2.IBQ(16, D),
    "fsq": lambda: vq2.FSQ([3, 4, 5, 3, 4, 6]),
    "fsq_projected": lambda: vq2.FSQ([8, 5], D),
    "lfq": lambda: vq2.LFQ(64),
    "lfq_projected": lambda: vq2.LFQ(16, D),
    "bsq": lambda: vq2.BSQ(64),
    "residual": lambda: vq2.ResidualVQ(8, D, 3),
    "residual_shared": lambda: vq2.ResidualVQ(8, D, 3, shared_codebook=True),
    "residual_joint": lambda: vq2.ResidualVQ((4, 8, 2), D, joint_code=True),
    "residual_rotation": lambda: vq2.ResidualVQ(8, D, 2, gradient="rotation"),
    "grouped": lambda: vq2.GroupedResidualVQ(2, 8, D, 2),
    "grouped_joint": lambda: vq2.GroupedResidualVQ(3, (4, 2), D, joint_code=True),
    "heads": lambda: MultiHeadVQ(3, 8, D),
    "heads_shared": lambda: MultiHeadVQ(3, 8, D, shared_codebook=True),
    "heads_cosine_joint": lambda: MultiHeadVQ(2, 8, D, joint_code=True, metric="cosine"),
    "residual_fsq": lambda: vq2.ResidualFSQ([4, 3, 5, 4, 3, 2], 3),
    "residual_fsq_joint": lambda: vq2.ResidualFSQ([4, 3], 2, D, joint_code=True),
    "random_projection": lambda: RandomProjectionQuantizer(16, D, D),
}
# Parts of an index where it is not one number.
PARTS = {
    "residual": (3,),
    "residual_shared": (3,),
    "residual_rotation": (2,),
    "grouped": (2, 2),
    "heads": (3,),
    "heads_shared": (3,),
    "residual_fsq": (3,),
}


def made(name: str, batches: int = 2) -> torch.nn.Module:
    """A quantiser that has seen training batches."""
    torch.manual_seed(0)
    quantizer = MAKE[name]()
    for _ in range(batches):
        quantizer(torch.randn(4, 30, D))
    return quantizer


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("shape", [(5, 7), (3,), (2, 3, 4), ()], ids=str)
def test_results_have_the_leading_shape(name, shape):
    z = torch.randn(*shape, D)
    z_q, indices, loss = made(name).eval()(z)
    assert z_q.shape == z.shape
    assert indices.shape == (*shape, *PARTS.get(name, ()))
    assert indices.dtype == torch.int64
    assert loss.shape == ()
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("name", MAKE)
def test_indices_lead_back_to_what_was_returned(name):
    quantizer = made(name).eval()
    z = torch.randn(40, D)
    z_q, indices, _ = quantizer(z)
    assert torch.equal(quantizer.encode(z), indices)
    torch.testing.assert_close(quantizer.lookup(indices), z_q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["fsq_projected", "lfq_projected", "bsq", "residual_fsq_joint"])
def test_a_module_in_bfloat16_takes_vectors_of_its_type(name):
    quantizer = made(name).eval().bfloat16()
    z = torch.randn(40, D).bfloat16()
    z_q, indices, _ = quantizer(z)
    assert z_q.dtype == torch.bfloat16
    assert torch.equal(indices, quantizer.encode(z))
    assert torch.allclose(quantizer.lookup(indices).float(), z_q.float(), atol=0.02)


@pytest.mark.parametrize("name", ["fsq_projected", "lfq_projected", "simvq", "residual_fsq_joint"])
def test_autocast_does_not_round_codes(name):
    quantizer = made(name).eval()
    indices = quantizer.encode(torch.randn(40, D))
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer.lookup(indices)
    assert torch.equal(found, quantizer.lookup(indices))


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_z_q_has_the_dtype_of_z_and_the_codes_of_its_values(name, dtype):
    quantizer = made(name).eval()
    if dtype == torch.float64:
        quantizer = quantizer.double()
    z = torch.randn(40, D).to(dtype)
    z_q, indices, _ = quantizer(z)
    assert z_q.dtype == dtype
    if dtype == torch.bfloat16:
        assert torch.equal(indices, quantizer.encode(z.float()))


def calls(name: str) -> list[Callable[[torch.Tensor], object]]:
    quantizer = MAKE[name]()
    return [quantizer, quantizer.encode]


@pytest.mark.parametrize("name", MAKE)
def test_vectors_of_another_size_are_refused(name):
    message = rf"^expected z \[\.\.\., D\] with channels last and D={D}, got \[4, 7\]"
    for call in calls(name):
        with pytest.raises(ValueError, match=message):
            call(torch.randn(4, 7))


@pytest.mark.parametrize("name", MAKE)
def test_integers_are_refused(name):
    for call in calls(name):
        with pytest.raises(TypeError, match="expected a floating z, got int64"):
            call(torch.zeros(4, D, dtype=torch.int64))


@pytest.mark.parametrize(
    "name", ["ema", "gradient", "simvq", "lfq", "residual", "residual_shared", "grouped", "heads"]
)
def test_the_gradient_of_z_q_goes_straight_to_z_once(name):
    quantizer = made(name)
    z = torch.randn(20, D, requires_grad=True)
    weight = torch.randn(20, D)
    (quantizer(z)[0] * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)


@pytest.mark.parametrize("name", ["ema", "grouped_joint", "heads_shared", "residual_fsq"])
def test_a_graph_gives_the_numbers_of_eager_mode(name):
    quantizer = made(name)
    quantizer.eval()
    z = torch.randn(24, D)
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(z), quantizer(z), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["residual", "fsq", "lfq", "simvq"])
def test_training_steps_are_one_graph(name):
    torch.manual_seed(0)
    eager, other = MAKE[name](), MAKE[name]()
    other.load_state_dict(eager.state_dict())
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        z = torch.randn(40, D)
        leaves = [z.clone().requires_grad_() for _ in range(2)]
        for call, leaf in zip((eager, compiled), leaves, strict=True):
            z_q, _, loss = call(leaf)
            (z_q.square().sum() + loss).backward()
        torch.testing.assert_close(leaves[1].grad, leaves[0].grad)
    for one, two in zip(eager.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(two, one)


@pytest.mark.inductor
def test_inductor_trains_a_residual_quantiser_as_eager_mode_does():
    torch.manual_seed(0)
    eager = vq2.ResidualVQ(16, D, 3)
    other = vq2.ResidualVQ(16, D, 3)
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True)
    for _ in range(3):
        z = torch.randn(60, D)
        z_q, indices, loss = eager(z)
        compiled_z_q, compiled_indices, compiled_loss = compiled(z)
        assert torch.equal(compiled_indices, indices)
        torch.testing.assert_close(compiled_z_q, z_q)
        torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(other.state_dict(), eager.state_dict())


TRANSFORMS = {
    "grad": lambda call: torch.func.grad(lambda z: call(z).sum()),
    "vmap": lambda call: torch.func.vmap(call, in_dims=1),
    "vmap_of_grad": lambda call: torch.func.vmap(torch.func.grad(lambda z: call(z).sum())),
    "grad_of_vmap": lambda call: torch.func.grad(lambda z: torch.func.vmap(call)(z).sum()),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_leaves_a_module_that_can_be_saved(name, transform):
    quantizer = made(name).eval()
    z = torch.randn(3, 7, D)
    quantizer(z)
    expected = quantizer.perplexity
    TRANSFORMS[transform](lambda z: quantizer(z)[0])(z)
    torch.save(quantizer.perplexity, io.BytesIO())
    torch.testing.assert_close(copy.deepcopy(quantizer).perplexity, expected)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("train", [True, False], ids=["trains", "evaluates"])
def test_a_quantiser_is_built_and_called_with_tensors_without_values(name, train):
    with FakeTensorMode():
        z_q, indices, loss = MAKE[name]().train(train)(torch.empty(5, 7, D))
    assert z_q.shape == (5, 7, D)
    assert indices.shape == (5, 7, *PARTS.get(name, ()))
    assert loss.shape == ()


@pytest.mark.parametrize("name", MAKE)
def test_no_vectors_are_no_error(name):
    z_q, indices, loss = made(name).eval()(torch.zeros(0, D))
    assert loss == 0
    assert z_q.shape == (0, D)
    assert len(indices) == 0


@pytest.mark.parametrize("name", MAKE)
def test_half_vectors_are_quantised_under_an_autocast_to_another_half(name):
    quantizer = made(name).eval()
    z = torch.randn(5, D).half()
    with torch.autocast("cpu", torch.bfloat16):
        z_q, indices, _ = quantizer(z)
    assert z_q.dtype == torch.float16
    assert torch.equal(indices, quantizer(z)[1])


@pytest.mark.parametrize("name", MAKE)
def test_lookup_takes_integers_that_are_no_mask(name):
    quantizer = made(name).eval()
    indices = quantizer.encode(torch.randn(5, D))
    assert torch.equal(quantizer.lookup(indices.int()), quantizer.lookup(indices))
    for wrong in (torch.uint8, torch.bool, torch.int16, torch.float32):
        with pytest.raises(TypeError, match=r"expected indices int64, got .* indices.long"):
            quantizer.lookup(indices.to(wrong))
    with pytest.raises(TypeError, match="expected indices to be a tensor, got a list"):
        quantizer.lookup(indices.tolist())
    with pytest.raises(TypeError, match="expected z to be a tensor, got a list"):
        quantizer([[0.0] * D])


@pytest.mark.parametrize("name", MAKE)
def test_a_nan_gets_the_index_of_some_code(name):
    quantizer = made(name).eval()
    z = torch.randn(9, D)
    z[4, 2], z[7] = torch.nan, torch.inf
    indices = quantizer.encode(z)
    assert indices.min() >= 0
    quantizer.lookup(indices)  # an index beyond the codes would raise


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6).flatmap(
        lambda sizes: st.tuples(st.just(sizes), st.integers(0, math.prod(sizes) - 1))
    )
)
@settings(max_examples=60, deadline=None)
def test_joint_codes_split_into_the_parts_that_they_join(case):
    sizes, code = case
    parts = split_codes(torch.tensor([code]), sizes)
    assert all(0 <= part < size for part, size in zip(parts[0].tolist(), sizes, strict=True))
    assert join_codes(parts, sizes).tolist() == [code]


def test_perplexity_of_many_codes_equals_that_of_a_table():
    indices = torch.randint(50, (400,))
    few, many = perplexity_of(indices, 50), perplexity_of(indices, 2**40)
    torch.testing.assert_close(few, many)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vq2.FSQ([8, 2]), "levels of at least 3 values each, got .8, 2.. For 2 values use"),
        (lambda: vq2.FSQ("8,5,5"), "expected levels to be a list of integers, got '8,5,5'"),
        (lambda: vq2.FSQ([64] * 6), "product is at most 2..31"),
        (lambda: vq2.LFQ(100), "a power of two >= 2, got 100: use 128"),
        (lambda: vq2.LFQ(2**20), "num_embeddings <= 262144, got 1048576: use BSQ"),
        (lambda: vq2.BSQ(64, temperature=math.nan), "expected temperature .* > 0"),
        (lambda: vq2.VectorQuantizerEMA(8, 4, commitment_cost=math.inf), "commitment_cost .* >= 0"),
        (lambda: vq2.LFQ(16, commitment_cost=-1.0), "commitment_cost .* >= 0, got -1.0"),
        (lambda: vq2.ResidualVQ(8, 4, 2, commitment_cost=math.nan), "commitment_cost .* >= 0"),
        (lambda: vq2.ResidualVQ(8, 4), "num_quantizers >= 1"),
        (lambda: vq2.ResidualVQ((8, 4), 4, 3), "num_quantizers=2 or none"),
        (lambda: vq2.ResidualVQ((8, 4), 4, shared_codebook=True), "one num_embeddings with"),
        (
            lambda: vq2.ResidualVQ(8, 4, 2, joint_code=True, quantizer_dropout=True),
            "joint_code or quantizer_dropout, got both",
        ),
        (lambda: vq2.ResidualVQ(8, 4, 2, metric="cosine"), "metric='euclidean', got 'cosine'"),
        (lambda: vq2.ResidualVQ(1024, 4, 8, joint_code=True), "Leave joint_code out"),
        (lambda: vq2.GroupedResidualVQ(4, 8, 6, 2), "groups to divide embedding_dim=6, got 4"),
        (lambda: MultiHeadVQ(4, 8, 6), "heads to divide embedding_dim=6, got 4"),
        (lambda: vq2.ResidualFSQ([4, 1], 2), "levels of at least 2 values"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("wrong", [-2, 10**9])
def test_lookup_refuses_indices_out_of_range(name, wrong):
    quantizer = made(name).eval()
    indices = quantizer.encode(torch.randn(4, D))
    indices.view(-1)[-1] = wrong
    with pytest.raises(ValueError, match=rf"expected indices.* got values in .*{wrong}"):
        quantizer.lookup(indices)
