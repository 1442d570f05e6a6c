"""The hierarchical VQ-VAE: shapes, wiring, errors, and the rosinality port as a special case."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.models import SMALL_VQVAE
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
STRIDES = [(2,), (4,), (8,), (2, 2), (4, 2), (2, 4, 2), (8, 2, 2), (2, 2, 2, 2)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(**changes: object) -> VQVAE2:
    config = replace(SMALL_VQVAE, image_size=(32, 64), num_residual_blocks=2, num_embeddings=16)
    return VQVAE2(replace(config, **changes))


def trained(model: VQVAE2, batch: torch.Tensor) -> VQVAE2:
    """In evaluation mode, with codebooks that have seen a batch."""
    model.train()(batch)
    model.update_codebooks_()
    return model.eval()


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape) * 2 - 1


@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_one_to_four_levels_have_the_sizes_of_the_configuration(strides: tuple[int, ...]) -> None:
    model = small(strides=strides)
    output = model(images(2, 3, 32, 64))
    assert output.reconstruction.shape == (2, 3, 32, 64)
    assert [tuple(codes.shape[1:]) for codes in output.codes] == list(model.config.level_sizes)
    assert all(codes.dtype == torch.int64 for codes in output.codes)
    assert len(output.perplexity) == len(strides)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    output = small(image_channels=channels)(images(2, channels, 32, 64))
    assert output.reconstruction.shape == (2, channels, 32, 64)


def test_odd_and_single_hidden_channels() -> None:
    for hidden in (1, 7):
        assert small(hidden_channels=hidden, strides=(4, 2))(images(1, 3, 32, 64)).codes


@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_encode_and_decode_are_the_halves_of_forward(strides: tuple[int, ...]) -> None:
    batch = images(2, 3, 32, 64)
    model = trained(small(strides=strides), batch)
    with torch.no_grad():  # where a gradient is wanted, convolutions add in another order
        output = model(batch)
        codes = model.encode(batch)
        reconstruction = model.decode(codes)
    for one, other in zip(codes, output.codes, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(reconstruction, output.reconstruction)


def test_decode_of_each_sample_by_vmap_equals_a_loop() -> None:
    model = trained(small(), images(2, 3, 32, 64))
    codes = model.encode(images(3, 3, 32, 64))
    of_all = torch.func.vmap(lambda *maps: model.decode([each[None] for each in maps]))(*codes)
    for number, found in enumerate(of_all):
        expected = model.decode([each[number][None] for each in codes])
        torch.testing.assert_close(found, expected)


def test_tensors_without_values_are_reconstructed() -> None:
    with FakeTensorMode():
        model = small().eval()
        output = model(torch.empty(2, 3, 32, 64))
        assert model.decode(output.codes).shape == output.reconstruction.shape == (2, 3, 32, 64)


def quantised_vectors(model: VQVAE2, batch: torch.Tensor) -> list[torch.Tensor]:
    """The inputs of each level's quantiser."""
    seen: list[torch.Tensor] = []
    for quantizer in model.quantizers:
        quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch)
    return seen


@pytest.mark.parametrize("strides", [(2, 2), (2, 2, 2, 2)], ids=str)
def test_every_finer_level_is_conditioned_on_all_coarser_codes(strides: tuple[int, ...]) -> None:
    batch = images(1, 3, 32, 64)
    model = trained(small(strides=strides), batch)
    changed = [copy.deepcopy(model) for _ in strides]
    plain = quantised_vectors(model, batch)
    for source, other in enumerate(changed):
        other.quantizers[source].codebook.add_(torch.randn(4))
        vectors = quantised_vectors(other, batch)
        for level in range(len(strides)):
            assert torch.equal(vectors[level], plain[level]) == (level <= source)


def test_decoder_is_fed_by_all_levels() -> None:
    batch = images(1, 3, 32, 64)
    model = trained(small(strides=(2, 2, 2, 2)), batch)
    codes = model.encode(batch)
    plain = model.decode(codes)
    for level in range(4):
        changed = [level_codes.clone() for level_codes in codes]
        changed[level] = (changed[level] + 1) % 16
        assert not torch.equal(model.decode(changed), plain)


def test_forward_in_training_leaves_the_codebooks_until_they_are_updated() -> None:
    model = small()
    model(images(2, 3, 32, 64))
    before = [quantizer.codebook.clone() for quantizer in model.quantizers]
    model(images(2, 3, 32, 64))
    assert all(torch.equal(q.codebook, b) for q, b in zip(model.quantizers, before, strict=True))
    model.update_codebooks_()
    assert not any(
        torch.equal(q.codebook, b) for q, b in zip(model.quantizers, before, strict=True)
    )
    assert [int(quantizer.steps) for quantizer in model.quantizers] == [1, 1]


def test_encode_in_training_mode_counts_nothing() -> None:
    model = small()
    model.encode(images(2, 3, 32, 64))
    assert not any(quantizer.pending.counts.any() for quantizer in model.quantizers)
    assert not any(quantizer.initialised for quantizer in model.quantizers)


def test_losses_name_the_levels_and_their_sum() -> None:
    output = small(strides=(2, 2, 2))(images(2, 3, 32, 64))
    assert list(output.losses) == ["top", "middle", "bottom", "commitment"]
    *levels, total = output.losses.values()
    torch.testing.assert_close(torch.stack(levels).sum(), total)
    assert output.commitment is total
    assert total.shape == ()


def test_loss_is_mean_squared_error_plus_commitment() -> None:
    model, batch = small(), images(2, 3, 32, 64)
    output = model(batch)
    error = (output.reconstruction - batch).double().square().mean()
    expected = error + output.commitment.double()
    assert model.loss(batch, output).item() == pytest.approx(expected.item(), rel=1e-6)


def test_levels_restart_from_rows_of_their_own() -> None:
    model = small()
    assert [quantizer.stream for quantizer in model.quantizers] == [0, 1]
    assert not torch.equal(model.quantizers[0].codebook, model.quantizers[1].codebook)


def test_codebook_rules_reach_the_quantisers() -> None:
    rules = {
        "commitment_cost": 0.5,
        "decay": 0.9,
        "epsilon": 1e-3,
        "ema_start": "zero",
        "restart": 0.1,
        "gradient": "rotation",
        "seed": 9,
    }
    for quantizer in small(init="uniform", **rules).quantizers:
        assert {name: getattr(quantizer, name) for name in rules} == rules
        assert quantizer.initialised


def test_images_of_another_size_than_the_configuration() -> None:
    output = small()(images(2, 3, 20, 12))
    assert output.reconstruction.shape == (2, 3, 20, 12)
    assert [tuple(codes.shape) for codes in output.codes] == [(2, 5, 3), (2, 10, 6)]


def test_no_images_give_no_nan() -> None:
    batch = images(2, 3, 32, 64)
    model = trained(small(), batch)
    output = model(batch[:0])
    assert output.reconstruction.shape == (0, 3, 32, 64)
    assert output.commitment == 0
    assert model.decode(model.encode(batch[:0])).shape == (0, 3, 32, 64)


def test_channels_last_vectors_reach_the_quantiser_without_a_copy() -> None:
    batch = images(2, 3, 32, 64)
    model = trained(small(), batch)
    expected = model(batch).reconstruction
    model.to(memory_format=torch.channels_last)
    batch = batch.to(memory_format=torch.channels_last)
    output = model(batch)
    assert all(z.is_contiguous() for z in quantised_vectors(model, batch))
    # Convolutions of another layout sum in another order.
    torch.testing.assert_close(output.reconstruction, expected, rtol=1e-4, atol=1e-5)


def test_autocast_trains_in_bfloat16_with_float32_losses() -> None:
    model, batch = small(), images(2, 3, 32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        loss = model.loss(batch, output)
    loss.backward()
    model.update_codebooks_()
    assert output.reconstruction.dtype == torch.bfloat16
    assert (loss.dtype, output.commitment.dtype) == (torch.float32, torch.float32)
    assert all(quantizer.codebook.dtype == torch.float32 for quantizer in model.quantizers)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_a_few_steps_reduce_the_error(gradient: str) -> None:
    model, batch = small(gradient=gradient), images(4, 3, 2, 4).repeat(1, 1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        output = model(batch)
        optimizer.zero_grad()
        model.loss(batch, output).backward()
        optimizer.step()
        model.update_codebooks_()
        errors.append((output.reconstruction - batch).square().mean().item())
    assert errors[-1] < 0.7 * errors[0]


def test_training_is_deterministic() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        model, batch = small(), images(2, 3, 32, 64)
        for _ in range(3):
            model.loss(batch, model(batch)).backward()
            model.update_codebooks_()
        runs.append([*model.state_dict().values(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_compiled_evaluation_equals_eager() -> None:
    batch = images(2, 3, 32, 64)
    model = trained(small(), batch)
    torch._dynamo.reset()
    output = torch.compile(model, fullgraph=True, backend="aot_eager")(batch)
    expected = model(batch)
    assert torch.equal(output.reconstruction, expected.reconstruction)
    assert all(torch.equal(*pair) for pair in zip(output.codes, expected.codes, strict=True))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 32, 64), r"expected images \[B, C, H, W\] with C=3, got \[2, 1, 32, 64\]"),
        ((3, 32, 64), r"expected images \[B, C, H, W\] with C=3, got \[3, 32, 64\]"),
        ((2, 3, 34, 64), r"H and W multiples of 4 \(strides \(2, 2\)\), got \[2, 3, 34, 64\]"),
        ((2, 3, 32, 2), r"H and W multiples of 4 \(strides \(2, 2\)\), got \[2, 3, 32, 2\]"),
        ((2, 3, 0, 64), r"H and W multiples of 4 \(strides \(2, 2\)\), got \[2, 3, 0, 64\]"),
    ],
)
def test_images_that_do_not_fit_are_named(shape: tuple[int, ...], message: str) -> None:
    for call in (small(), small().encode):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


def test_bytes_are_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"got uint8: use images / 127\.5 - 1 for bytes"):
        small()(torch.zeros(2, 3, 32, 64, dtype=torch.uint8))


def test_image_size_of_one_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected image_size to be \(height, .* got \(8,\)"):
        VQVAE2Config(image_size=(8,), strides=(2,))  # type: ignore[arg-type]


def codes_of(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.zeros(shape, dtype=torch.int64) for shape in shapes]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (codes_of((1, 4, 4)), r"expected 2 code maps \(top, bottom\), got 1"),
        (codes_of((4, 4), (8, 8)), r"expected codes \[B, h, w\], got \[4, 4\] at level top"),
        (codes_of((1, 4, 4), (1, 8, 4)), r"expected codes \[1, 8, 8\] at level bottom"),
        ([*codes_of((1, 4, 4)), torch.full((1, 8, 8), 16)], r"in 0\.\.15, got 16\.\.16 at level b"),
        ([torch.full((1, 4, 4), -1), *codes_of((1, 8, 8))], r"in 0\.\.15, got -1\.\.-1 at level t"),
    ],
)
def test_codes_that_do_not_fit_are_named(codes: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().decode(codes)


def test_codes_of_another_dtype_are_named() -> None:
    with pytest.raises(TypeError, match=r"expected codes\[0\] int64, got .* float32"):
        small().decode([torch.zeros(1, 4, 4), *codes_of((1, 8, 8))])


def test_codes_that_are_no_tensors_are_named() -> None:
    codes = [level.numpy() for level in codes_of((1, 4, 4), (1, 8, 8))]
    message = r"expected codes\[0\] to be a tensor, got a numpy array: pass torch.from_numpy"
    with pytest.raises(TypeError, match=message):
        small().decode(codes)


# The names of the port's modules and ours.
PORT_NAMES = {
    "enc_b.blocks": "encoders.0.layers",
    "enc_t.blocks": "encoders.1.layers",
    "quantize_conv_t": "pre_quantize.0",
    "quantize_conv_b": "pre_quantize.1",
    "quantize_t": "quantizers.0",
    "quantize_b": "quantizers.1",
    "dec_t.blocks": "conditioners.0.layers",
    "upsample_t": "upsamplers.0.0",
    "dec.blocks": "decoder.layers",
}


def ours(port_name: str) -> str:
    prefix = next(prefix for prefix in PORT_NAMES if port_name.startswith(f"{prefix}."))
    rest = port_name.removeprefix(prefix).replace(".conv.", ".layers.")
    return PORT_NAMES[prefix] + rest


def port_model() -> tuple[VQVAE2, dict[str, torch.Tensor]]:
    """Our model with the weights of the golden port, and the golden tensors."""
    golden = load_file(GOLDEN / "vqvae.safetensors")
    sizes = json.loads((GOLDEN / "golden.json").read_text())["vqvae"]["constructor"]
    model = VQVAE2(
        VQVAE2Config(
            image_size=(16, 24),
            image_channels=sizes["in_channel"],
            hidden_channels=sizes["channel"],
            residual_channels=sizes["n_res_channel"],
            num_residual_blocks=sizes["n_res_block"],
            num_embeddings=sizes["n_embed"],
            embedding_dim=sizes["embed_dim"],
            init="normal",
            ema_start="zero",
            restart=0,
        )
    )
    weights = {}
    for name, value in golden.items():
        prefix, _, port_name = name.partition(".")
        if prefix != "state":
            continue
        if port_name.startswith("quantize_") and not port_name.startswith("quantize_conv"):
            name = ours(port_name).replace(".embed", ".codebook").replace("codebook_a", "embed_a")
            weights[name] = value.T.contiguous() if value.dim() == 2 else value
        else:
            weights[ours(port_name)] = value
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert {name.rpartition(".")[2] for name in missing} == {"steps", "initialised"}
    return model, golden


def test_two_levels_represent_the_port() -> None:
    model, golden = port_model()
    model.eval()
    codes = model.encode(golden["x"])
    assert torch.equal(codes[0], golden["id_t"])
    assert torch.equal(codes[1], golden["id_b"])
    output = model(golden["x"])
    torch.testing.assert_close(output.reconstruction, golden["dec"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decode(codes), golden["decode_code"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.commitment / 0.25, golden["diff"][0], rtol=1e-5, atol=0)


def test_two_levels_train_as_the_port() -> None:
    model, golden = port_model()
    output = model(golden["train_x"])
    (output.reconstruction.square().mean() + output.commitment).backward()
    model.update_codebooks_()
    torch.testing.assert_close(output.reconstruction, golden["train_dec"], rtol=1e-4, atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, value in golden.items():
        if name.startswith("grad."):
            gradient = gradients.pop(ours(name.removeprefix("grad.")))
            # Float32 gradients of another summation order, relative to the largest.
            assert (gradient - value).abs().max() < 1e-4 * value.abs().max()
    assert not gradients
    for level, port in enumerate(("t", "b")):
        quantizer, prefix = model.quantizers[level], f"after.quantize_{port}"
        assert torch.equal(quantizer.cluster_size, golden[f"{prefix}.cluster_size"])
        averages, codes = golden[f"{prefix}.embed_avg"].T, golden[f"{prefix}.embed"].T
        torch.testing.assert_close(quantizer.embed_avg, averages, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(quantizer.codebook, codes, rtol=1e-4, atol=1e-5)
