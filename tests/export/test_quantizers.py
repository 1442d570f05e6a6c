"""Quantisers as programs, alone and inside a user's own autoencoder, ours and the drop-in's."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import vqvae2_fast as vq2
from vqvae2_fast.compat import lucidrains
from vqvae2_fast.export import quantizer, save_onnx
from vqvae2_fast.modules import MultiHeadVQ, RandomProjectionQuantizer, VectorQuantizer
from vqvae2_fast.ops.patch_conv2d.op import PATCH_CONV2D

D = 8
VQ = {"dim": D, "codebook_size": 32}
RESIDUAL = VQ | {"num_quantizers": 2}
FSQ = {"levels": [8, 5, 5], "dim": D}
# They take `[B, N, D]`, but those of maps take `[B, D, H, W]`, and `multi_scale` `[B, H, W, D]`.
MAKE = {
    "ema": lambda: vq2.VectorQuantizerEMA(32, D, init="kmeans"),
    "cosine": lambda: vq2.VectorQuantizerEMA(32, D, metric="cosine", gradient="rotation"),
    "gradient": lambda: VectorQuantizer(32, D),
    "gradient_cosine": lambda: VectorQuantizer(32, D, metric="cosine"),
    "direction": lambda: VectorQuantizer(32, D, metric="direction"),
    "simvq": lambda: vq2.SimVQ(32, D),
    "bridge": lambda: vq2.VQBridge(32, D, hidden_dim=8),
    "ibq": lambda: vq2.IBQ(32, D),
    "fsq": lambda: vq2.FSQ([8, 5, 5], D),
    "lfq": lambda: vq2.LFQ(64, D),
    "bsq": lambda: vq2.BSQ(256),
    "residual": lambda: vq2.ResidualVQ((4, 16, 2), D),
    "residual_joint": lambda: vq2.ResidualVQ(16, D, 3, joint_code=True, gradient="rotation"),
    "grouped": lambda: vq2.GroupedResidualVQ(2, 16, D, 2),
    "heads": lambda: MultiHeadVQ(2, 16, D),
    "residual_fsq": lambda: vq2.ResidualFSQ([4, 3], 2, D),
    "random_projection": lambda: RandomProjectionQuantizer(16, D, D),
    "multi_scale": lambda: vq2.MultiScaleVQ(32, D, (1, 2, 4), num_phi=2),
    "lucidrains_vq": lambda: lucidrains.VectorQuantize(**VQ, kmeans_init=True),
    "lucidrains_heads": lambda: lucidrains.VectorQuantize(
        **VQ, use_cosine_sim=True, codebook_dim=4, heads=2, separate_codebook_per_head=True
    ),
    "lucidrains_map_vq": lambda: lucidrains.VectorQuantize(**VQ, accept_image_fmap=True),
    "lucidrains_residual": lambda: lucidrains.ResidualVQ(**RESIDUAL),
    "lucidrains_shared": lambda: lucidrains.ResidualVQ(
        **RESIDUAL, use_cosine_sim=True, shared_codebook=True, kmeans_init=True
    ),
    "lucidrains_grouped": lambda: lucidrains.GroupedResidualVQ(**RESIDUAL, groups=2),
    "lucidrains_map_fsq": lambda: lucidrains.FSQ(**FSQ),
    "lucidrains_residual_fsq": lambda: lucidrains.ResidualFSQ(**FSQ, num_quantizers=2),
    "lucidrains_grouped_fsq": lambda: lucidrains.GroupedResidualFSQ(
        **FSQ, num_quantizers=2, groups=2
    ),
    "lucidrains_map_lfq": lambda: lucidrains.LFQ(dim=D, codebook_size=64),
    "lucidrains_residual_lfq": lambda: lucidrains.ResidualLFQ(
        dim=D, codebook_size=64, num_quantizers=2
    ),
    "lucidrains_simvq": lambda: lucidrains.SimVQ(**VQ),
    "lucidrains_residual_simvq": lambda: lucidrains.ResidualSimVQ(**RESIDUAL),
    "lucidrains_random_projection": lambda: lucidrains.RandomProjectionQuantizer(
        **VQ, codebook_dim=4, num_codebooks=2
    ),
}
# One of each way to search, ours and the drop-in's.
IN_A_MODEL = (
    "cosine",
    "fsq",
    "lfq",
    "residual",
    "multi_scale",
    "lucidrains_vq",
    "lucidrains_residual",
    "lucidrains_map_fsq",
    "lucidrains_map_lfq",
    "lucidrains_simvq",
)


def layout(name: str) -> str:
    return "map" if "_map_" in name else "last" if name == "multi_scale" else "rows"


class Autoencoder(nn.Module):
    """What a user writes around a quantiser."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layout = layout(name)
        self.encoder, self.decoder = nn.Conv2d(3, D, 4, 4), nn.ConvTranspose2d(D, 3, 4, 4)
        self.quantizer = MAKE[name]()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.encoder(images)
        if self.layout == "map":
            z_q, indices = self.quantizer(z)[:2]
        else:
            last = z.permute(0, 2, 3, 1)
            rows = last if self.layout == "last" else last.flatten(1, 2)
            z_q, indices = self.quantizer(rows)[:2]
            z_q = z_q.reshape(last.shape).permute(0, 3, 1, 2)
        return self.decoder(z_q), indices


def made(name: str) -> nn.Module:
    """A quantiser that has seen a batch and evaluates."""
    torch.manual_seed(0)
    module = MAKE[name]()
    module(example(name, 32, 4))
    return module.eval()


def example(name: str, batch: int, length: int) -> torch.Tensor:
    shapes = {"map": (D, length, length), "last": (4, 4, D), "rows": (length, D)}
    return torch.randn(batch, *shapes[layout(name)])


def check_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        else:  # two codes of a codebook can be equal up to rounding
            assert (one == other).float().mean() > 0.98


@pytest.mark.parametrize("name", MAKE)
@torch.no_grad()
def test_a_program_of_any_batch_and_length_gives_the_codes_and_leads_back(name):
    module, z = made(name), example(name, 5, 7)
    expected = module(z)
    labels = isinstance(expected, torch.Tensor)
    program = quantizer(module, example(name, 1, 4))
    assert not [node for node in program.graph.nodes if "vqvae2_fast" in str(node.target)]
    found = program.module()(z)
    check_close([found] if labels else found, [expected] if labels else expected[:2])
    if not labels:
        decoder = quantizer(module, example(name, 1, 4), "decoder").module()
        check_close([decoder(expected[1])], expected[:1])


@pytest.mark.parametrize("name", IN_A_MODEL)
def test_a_users_model_goes_to_onnx_with_an_open_batch(name):
    torch.manual_seed(0)
    model = Autoencoder(name)
    model(torch.randn(32, 3, 16, 16))
    model.eval()
    images = torch.randn(5, 3, 16, 16)
    sizes = ({0: Dim("batch")},)
    program = torch.onnx.export(model, (images[:2],), dynamic_shapes=sizes, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        check_close(map(torch.from_numpy, found), model(images))


def test_a_quantizer_in_onnx_has_its_own_names(tmp_path):
    module, z = made("ema"), example("ema", 5, 7)
    save_onnx(quantizer(module, z), tmp_path / "ema.onnx")
    save_onnx(quantizer(module, z, "decoder"), tmp_path / "decoder.onnx")
    encoder, decoder = (
        onnxruntime.InferenceSession(tmp_path / name) for name in ("ema.onnx", "decoder.onnx")
    )
    z_q, indices = encoder.run(["z_q", "indices"], {"z": z.numpy()})
    assert (decoder.run(["z_q"], {"indices": indices})[0] == z_q).all()


def test_open_sizes_leave_an_operators_layout_as_its_kernel_writes_it():
    def call(x, weight):
        return PATCH_CONV2D.overload(x, weight, None, 1, 1, 1, 3, False)

    inputs = torch.randn(3, 4, 8, 8), torch.randn(6, 4, 3, 3)
    graph = make_fx(call, tracing_mode="symbolic")(*inputs).graph
    (node,) = graph.find_nodes(op="call_function", target=PATCH_CONV2D.overload)
    assert node.meta["val"].stride(1) == 1


def test_errors():
    with pytest.raises(ValueError, match="expected part encoder, decoder, got 'both'"):
        quantizer(made("ema"), example("ema", 2, 2), "both")
    name = "lucidrains_random_projection"
    with pytest.raises(TypeError, match="lead back to vectors, got RandomProjectionQuantizer"):
        quantizer(made(name), example(name, 2, 2), "decoder")


def test_a_codebook_that_has_not_started_is_not_exported():
    module = lucidrains.VectorQuantize(**VQ, kmeans_init=True)
    with pytest.raises(ValueError, match="codebooks have started"):
        quantizer(module, torch.randn(2, 5, D))
