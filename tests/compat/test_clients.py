"""compat.taming, compat.diffusers and compat.encodec.

tests/data/golden/clients holds three training steps of the originals, written by
`python benchmarks/clients.py --originals FOLDER --golden DIR`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from vqvae2_fast.compat.diffusers import VectorQuantizer
from vqvae2_fast.compat.encodec import ResidualVectorQuantizer, VectorQuantization
from vqvae2_fast.compat.taming import VectorQuantizer2

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "clients"
ENCODEC = {"dimension": 6, "n_q": 3, "bins": 12, "decay": 0.8, "kmeans_iters": 5}
LEARNT = {
    "taming": lambda: VectorQuantizer2(24, 6, beta=0.25),
    "taming_repaired": lambda: VectorQuantizer2(
        24, 6, beta=0.25, legacy=False, sane_index_shape=True
    ),
    "diffusers": lambda: VectorQuantizer(24, 3, beta=0.25),
}


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def check_state(module: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value)


@pytest.mark.parametrize("name", LEARNT)
def test_learnt_codes_follow_the_original(name):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    module = LEARNT[name]()
    module.load_state_dict(part(tensors, "before."))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(3):
        module.zero_grad()
        x = tensors[f"x.{step}"].requires_grad_()
        quantized, loss, (_, _, codes) = module(x)
        (quantized.square().mean() + loss).backward()
        torch.testing.assert_close(quantized, tensors[f"quantized.{step}"])
        torch.testing.assert_close(loss, tensors[f"loss.{step}"])
        assert torch.equal(codes, tensors[f"codes.{step}"])
        torch.testing.assert_close(x.grad, tensors[f"gradient.{step}"])
        torch.testing.assert_close(
            module.embedding.weight.grad, tensors[f"codebook_gradient.{step}"]
        )
        optimizer.step()
    check_state(module, part(tensors, "after."))


def test_encodec_follows_the_original():
    """K-means, averages, losses, and torch's generator, which expired codes move."""
    tensors = load_file(GOLDEN / "encodec.safetensors")
    module = ResidualVectorQuantizer(**ENCODEC)
    module.load_state_dict(part(tensors, "before."))
    torch.manual_seed(1)
    for step in range(3):
        x = tensors[f"x.{step}"].requires_grad_()
        result = module(x, 75)
        (result.quantized.square().mean() + result.penalty).backward()
        torch.testing.assert_close(result.quantized, tensors[f"quantized.{step}"])
        torch.testing.assert_close(result.penalty, tensors[f"loss.{step}"])
        assert torch.equal(result.codes, tensors[f"codes.{step}"])
        torch.testing.assert_close(x.grad, tensors[f"gradient.{step}"])
    assert torch.equal(torch.rand(4), tensors["random"])
    check_state(module, part(tensors, "after."))


def started() -> ResidualVectorQuantizer:
    module = ResidualVectorQuantizer(**ENCODEC, kmeans_init=False)
    for layer in module.vq.layers:
        torch.nn.init.normal_(layer.codebook)
    return module.eval()


def test_encodec_decodes_prefixes():
    module, x = started(), torch.randn(2, 6, 20)
    result = module(x, 75)
    codes = module.encode(x, 75)
    assert torch.equal(codes, result.codes)
    torch.testing.assert_close(module.decode(codes), result.quantized)
    books = [layer.codebook for layer in module.vq.layers]
    two = books[0][codes[0]] + books[1][codes[1]]  # [B, T, D]
    torch.testing.assert_close(module.decode(codes[:2]), two.transpose(1, 2))
    assert torch.equal(module.vq.layers[0].encode(x), codes[0])


def test_encodec_takes_as_many_codebooks_as_the_bandwidth_holds():
    module, x = started(), torch.randn(2, 6, 20)
    per_codebook = module.get_bandwidth_per_quantizer(75)  # bits a second
    for bandwidth, count in ((None, 3), (2.5 * per_codebook / 1000, 2), (0.001, 1)):
        result = module(x, 75, bandwidth)
        assert len(result.codes) == len(module.encode(x, 75, bandwidth)) == count
        assert float(result.bandwidth) == pytest.approx(count * per_codebook)


def test_encodec_refuses_a_projection():
    with pytest.raises(NotImplementedError, match=r"codebook_dim=None or 6.*got 4"):
        VectorQuantization(6, 12, codebook_dim=4)


def test_encodec_refuses_to_move_its_codes_twice():
    module = started().train()
    x = torch.randn(2, 6, 20, requires_grad=True)
    penalty = checkpoint(lambda x: module(x, 75).penalty, x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="checkpoint"):
        penalty.backward()


@pytest.fixture
def in_use(tmp_path):
    """A file of the codes that are in use, and a codebook of which the last is not among them."""
    np.save(tmp_path / "used.npy", np.array([5, 2, 7]))
    return tmp_path / "used.npy"


@pytest.mark.parametrize(("unknown", "place"), [("extra", 3), (1, 1)])
def test_taming_counts_codes_in_use(in_use, unknown, place):
    module = VectorQuantizer2(8, 4, beta=0.25, remap=in_use, unknown_index=unknown)
    assert module.re_embed == max(3, place + 1)  # how many indices there are
    codes = torch.tensor([[2, 5, 6, 7]])
    assert module.remap_to_used(codes).tolist() == [[1, 0, place, 2]]
    back = 5 if unknown == "extra" else 2
    assert module.unmap_to_all(module.remap_to_used(codes)).tolist() == [[2, 5, back, 7]]


def test_taming_draws_unknown_codes(in_use):
    module = VectorQuantizer2(8, 4, beta=0.25, remap=in_use)
    torch.manual_seed(0)
    drawn = module.remap_to_used(torch.full((1, 50), 6))
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randint(3, (50,))[None])


def test_taming_returns_remapped_indices_as_a_column(in_use):
    module = VectorQuantizer2(8, 4, beta=0.25, remap=in_use, unknown_index="extra")
    z = module.embedding.weight[torch.tensor([7, 2, 6, 5])].T.reshape(1, 4, 2, 2)
    assert module(z)[2][2].tolist() == [[2], [1], [3], [0]]
    module.sane_index_shape = True
    assert module(z)[2][2].tolist() == [[[2, 1], [3, 0]]]


def test_taming_looks_codes_up():
    module = VectorQuantizer2(8, 4, beta=0.25)
    indices = torch.arange(6)
    weight = module.embedding.weight
    assert torch.equal(module.get_codebook_entry(indices, None), weight[:6])
    maps = module.get_codebook_entry(indices, (1, 2, 3, 4))
    assert torch.equal(maps[0, :, 1, 2], weight[5])


def test_taming_refuses_maps_of_other_channels():
    module = VectorQuantizer2(8, 4, beta=0.25)
    with pytest.raises(ValueError, match=r"z \[B, 4, H, W\].*\[1, 3, 2, 2\]"):
        module(torch.randn(1, 3, 2, 2))


def test_taming_refuses_gumbels_arguments():
    module = VectorQuantizer2(8, 4, beta=0.25)
    with pytest.raises(ValueError, match=r"temp=None.*got 0.5"):
        module(torch.randn(1, 4, 2, 2), temp=0.5)


@pytest.mark.parametrize("shape", [(6, 20), (2, 5, 20)])
def test_encodec_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"x \[B, 6, T\]"):
        started()(torch.randn(shape), 75)


def test_encodec_compiles_in_one_graph_that_starts_its_codes():
    tensors = load_file(GOLDEN / "encodec.safetensors")
    module = ResidualVectorQuantizer(**ENCODEC)
    compiled = torch.compile(lambda x: module(x, 75), fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    for step in range(3):
        x = tensors[f"x.{step}"].requires_grad_()
        result = compiled(x)
        (result.quantized.square().mean() + result.penalty).backward()
        assert torch.equal(result.codes, tensors[f"codes.{step}"])
        torch.testing.assert_close(x.grad, tensors[f"gradient.{step}"])
    check_state(module, part(tensors, "after."))


def test_encodec_exports():
    module, x = started(), torch.randn(2, 6, 20)
    program = torch.export.export(module.vq, (x,))
    for exported, eager in zip(program.module()(x), module.vq(x), strict=True):
        assert torch.equal(exported, eager)
    assert not any("encodec" in str(node.target) for node in program.graph.nodes)
