"""Exported programs give what the VQ-VAE gives, in PyTorch without our operators and in ONNX."""

from __future__ import annotations

import copy
from dataclasses import replace

import onnxruntime
import pytest
import torch
from helpers.models import SMALL_VQVAE

from vqvae2_fast import VQVAE2, from_preset
from vqvae2_fast.data import load_emoji, to_float
from vqvae2_fast.export import PARTS, export_program, save_onnx, save_program
from vqvae2_fast.ops.scalar_quantize.op import (
    scalar_quantize_exported,
    scalar_quantize_reference,
)

QUANTIZERS = ("lfq", "fsq:4,4", "residual:4,4", "residual:2,8")  # of 16 codes each


@pytest.fixture(scope="module")
def emoji():
    return to_float(load_emoji("held_out").images[:16])


@pytest.fixture(scope="module")
def trained():
    return from_preset("emoji32").vqvae


def small(quantizer: str = "ema") -> VQVAE2:
    torch.manual_seed(0)
    config = replace(SMALL_VQVAE, image_size=(16, 16), num_embeddings=16, quantizer=(quantizer,))
    return VQVAE2(config).eval()


def run_onnx(program, folder, *inputs):
    save_onnx(program, folder / "part.onnx")
    session = onnxruntime.InferenceSession(folder / "part.onnx")
    named = {put.name: x.numpy() for put, x in zip(session.get_inputs(), inputs, strict=True)}
    names = [put.name for put in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, named)), strict=True))


def check_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def near_ties_only(found, expected):
    """Whether at most one code in a hundred differs: those whose distances round alike."""
    return all((f == e).float().mean() > 0.99 for f, e in zip(found, expected, strict=True))


def test_encoder_in_onnx_gives_the_codes(trained, emoji, tmp_path):
    found = run_onnx(export_program(trained, "encoder", (32, 32)), tmp_path, emoji)
    assert list(found) == ["codes_0", "codes_1"]
    assert near_ties_only(found.values(), trained.encode(emoji))


def test_decoder_in_onnx_gives_the_images(trained, emoji, tmp_path):
    codes = trained.encode(emoji)
    found = run_onnx(export_program(trained, "decoder", (32, 32)), tmp_path, *codes)
    with torch.no_grad():
        expected = trained.decode(codes).clamp(-1, 1)
    torch.testing.assert_close(found["images"], expected, atol=1e-4, rtol=0)


def test_autoencoder_is_the_decoder_of_the_encoder(emoji, tmp_path):
    model = small()
    images = emoji[:1, :, :16, :16]
    program = export_program(model, "autoencoder", (16, 16))
    with torch.no_grad():
        expected = model.decode(model.encode(images)).clamp(-1, 1)
    torch.testing.assert_close(program.module()(images), expected, atol=1e-4, rtol=0)
    found = run_onnx(program, tmp_path, images)
    torch.testing.assert_close(found["reconstructions"], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_goes_without_our_operators(quantizer):
    model = small(quantizer)
    images = torch.randn(5, 3, 16, 16)
    program = export_program(model, "encoder", (16, 16))
    assert not [node for node in program.graph.nodes if "vqvae2_fast" in str(node.target)]
    check_equal(program.module()(images), model.encode(images))


@pytest.mark.parametrize("quantizer", ["ema", "residual:4,4"])
def test_half_precision_searches_in_float32(quantizer):
    model, images = small(quantizer), torch.randn(64, 3, 16, 16)
    model.train()(images)  # starts the codebooks among the vectors, where distances are close
    model, images = model.eval().bfloat16(), images.bfloat16()
    program = export_program(model, "encoder", (16, 16))
    assert near_ties_only(program.module()(images), model.encode(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("symmetric", "hard"), [(False, False), (True, False), (False, True)])
def test_scalars_are_rounded_in_float32_at_least(dtype, symmetric, hard):
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = scalar_quantize_reference(z, (4000, 5), symmetric, hard)
    found = scalar_quantize_exported(z, (4000, 5), symmetric, hard)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_float64_takes_any_number_of_images():
    model = small().double()
    images = torch.randn(5, 3, 16, 16).double()
    program = export_program(model, "encoder", (16, 16))
    check_equal(program.module()(images), model.encode(images))


@pytest.mark.filterwarnings("error:.*LeafSpec:FutureWarning")
def test_own_names_of_pytorch_are_no_warnings_to_the_user(tmp_path):
    save_onnx(export_program(small(), "decoder", (16, 16)), tmp_path / "decoder.onnx")


def test_own_operators_give_the_codes_to_the_bit(trained, emoji, tmp_path):
    program = export_program(trained, "encoder", (32, 32), aten=False)
    save_program(program, tmp_path / "encoder.pt2")
    loaded = torch.export.load(tmp_path / "encoder.pt2").module()
    check_equal(loaded(emoji), trained.encode(emoji))


def test_a_model_in_training_is_exported_as_it_evaluates_and_goes_on_training():
    model = small().train()
    model.quantizers.eval()
    before = copy.deepcopy(model.state_dict())
    export_program(model, "encoder", (16, 16))
    assert model.training
    assert not any(module.training for module in model.quantizers.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_module_of_ones_own_is_loaded_again_as_the_page_says(tmp_path):
    class Codes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vqvae = small()

        def forward(self, images):
            return self.vqvae(images).reconstruction, *self.vqvae.encode(images)

    module, images = Codes(), torch.rand(2, 3, 16, 16)
    program = torch.export.export(module, (images,)).run_decompositions({})
    torch.export.save(program, tmp_path / "codes.pt2")
    loaded = torch.export.load(tmp_path / "codes.pt2").module()
    check_equal(loaded(images), module(images))


def test_errors():
    model = small()
    with pytest.raises(ValueError, match="expected part encoder, decoder, autoencoder, got 'top'"):
        export_program(model, "top", (16, 16))
    for size in ((16, 18), (0, 16), 16, (3, 16, 16), (16.0, 16.0)):
        with pytest.raises(ValueError, match="both multiples of 4"):
            export_program(model, PARTS[0], size)
    with pytest.raises(TypeError, match="expected a VQVAE2 or a pipeline of one, got Linear"):
        export_program(torch.nn.Linear(1, 1), PARTS[0], (16, 16))
    meta = export_program(small().to("meta"), "decoder", (16, 16))
    with pytest.raises(ValueError, match="expected weights with values, got some on"):
        save_onnx(meta, "never.onnx")
    half = export_program(small().bfloat16(), "decoder", (16, 16))
    with pytest.raises(TypeError, match="of float32 or float16, got bfloat16, of which ONNX has"):
        save_onnx(half, "never.onnx")
