"""A VQ-VAE with each kind of quantiser: training, code maps, checkpoints, priors."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.models import tiny_prior

import vqvae2_fast as vq2

QUANTIZERS = {
    "cosine": ("cosine",),
    "gradient": ("gradient",),
    "simvq": ("simvq",),
    "lfq": ("lfq",),
    "bsq": ("bsq",),
    "fsq": ("fsq:4,4,4",),
    "residual_fsq": ("residual-fsq:2:4,2",),
    "residual": ("residual:16,4",),
    "grouped": ("grouped:2:4,2",),
    "heads": ("heads:3:4",),
    "of_each_level": ("ema", "fsq:8,8"),
}


def config(quantizer: tuple[str, ...], **changes: object) -> vq2.VQVAE2Config:
    sizes = {"hidden_channels": 8, "residual_channels": 4, "num_embeddings": 64}
    return vq2.VQVAE2Config(
        image_size=(16, 16),
        image_channels=1,
        strides=(2, 2),
        embedding_dim=6,
        quantizer=quantizer,
        **(sizes | changes),
    )


def trained(quantizer: tuple[str, ...], steps: int = 2, **changes: object) -> vq2.VQVAE2:
    torch.manual_seed(0)
    model = vq2.VQVAE2(config(quantizer, **changes))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(steps):
        images = torch.rand(4, 1, 16, 16) * 2 - 1
        output = model(images)
        model.loss(images, output).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_codebooks_()
    return model.eval()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_code_maps_below_k_lead_back_to_the_reconstruction(name):
    model = trained(QUANTIZERS[name])
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    output = model(images)
    codes = model.encode(images)
    for actual, expected in zip(codes, output.codes, strict=True):
        assert torch.equal(actual, expected)
        assert actual.dim() == 3
        assert 0 <= int(actual.min()) <= int(actual.max()) < 64
    torch.testing.assert_close(model.decode(codes), output.reconstruction, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_checkpoint_gives_the_same_images(name, tmp_path):
    model = trained(QUANTIZERS[name])
    vq2.save(model, tmp_path / "model")
    loaded = vq2.load(tmp_path / "model")
    assert loaded.config == model.config
    codes = [torch.randint(64, (2, 4, 4)), torch.randint(64, (2, 8, 8))]
    assert torch.equal(loaded.decode(codes), model.decode(codes))


def test_configurations_without_the_field_mean_averages(tmp_path):
    vq2.save(trained(("ema",)), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    header = json.loads(path.read_text())
    del header["config"]["quantizer"]
    path.write_text(json.dumps(header))
    (tmp_path / "model" / "files.json").unlink()
    assert vq2.load(tmp_path / "model").config.quantizers == ("ema", "ema")


@pytest.mark.parametrize("name", ["residual", "grouped", "heads"])
def test_codebooks_of_parts_start_by_kmeans_and_move_by_step(name):
    model = trained(QUANTIZERS[name], steps=0, quantize_after=1).train()
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    assert all(not codes.any() for codes in model(images).codes)
    model.update_codebooks_()
    assert any(codes.any() for codes in model(images).codes)
    books = model._averaged_codebooks()
    assert all(book.initialised for book in books)
    before = [book.codebook.clone() for book in books]
    model.update_codebooks_()
    assert all(not torch.equal(book.codebook, old) for book, old in zip(books, before, strict=True))


def test_a_prior_draws_joint_codes_that_decode():
    model = trained(("residual:4,4",), num_embeddings=16)
    top = tiny_prior(0, size=(4, 4), num_embeddings=16)
    bottom = tiny_prior(1, size=(8, 8), num_embeddings=16, condition_sizes=((4, 4),))
    images = vq2.sample_images(vq2.Pipeline(model, [top, bottom]), 2, seed=1)
    assert images.shape == (2, 1, 16, 16)
    assert images.isfinite().all()


def test_a_prior_of_another_k_is_refused():
    model = trained(("residual:8,8",))
    top = tiny_prior(0, size=(4, 4), num_embeddings=16)
    bottom = tiny_prior(1, size=(8, 8), num_embeddings=16, condition_sizes=((4, 4),))
    with pytest.raises(ValueError, match="num_embeddings"):
        vq2.sample_images(vq2.Pipeline(model, [top, bottom]), 2)


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ("fsq:8,9", "num_embeddings=72 with quantizer='fsq:8,9', got 64"),
        ("residual:8,7", "num_embeddings=56 "),
        ("residual-fsq:2:8,8", "num_embeddings=4096 "),
        ("grouped:4:2,2", "num_embeddings=256 "),
        ("heads:4:4", "num_embeddings=256 "),
        ("fsq:32,2", "levels of at least 3 values each"),
        ("fsq", "expected quantizer fsq:LEVELS, such as fsq:8,8,8, got 'fsq'"),
        ("fsq:8,x", "expected quantizer fsq:LEVELS"),
        ("fsq:8,-8", "expected quantizer fsq:LEVELS"),
        ("lfq:6", "expected quantizer lfq, got 'lfq:6'"),
        ("heads:2:8,8", "expected quantizer heads:HEADS:CODES"),
        ("grouped:1000000000:2", "expected quantizer grouped:GROUPS:CODES"),
        ("kmeans", "expected quantizer to be one of ema, cosine"),
    ],
)
def test_words_that_name_no_quantiser_of_k_codes_are_refused(quantizer, message):
    with pytest.raises(ValueError, match=message):
        config((quantizer,))


def test_parts_must_divide_the_vectors():
    with pytest.raises(
        ValueError, match=r"embedding_dim to be a multiple of the 4 parts .*, got 6"
    ):
        config(("heads:4:4",), num_embeddings=256)


def test_lfq_needs_a_power_of_two():
    with pytest.raises(ValueError, match="power of two with quantizer='lfq', got 60"):
        config(("lfq",), num_embeddings=60)


def test_one_quantiser_for_each_level_or_for_all():
    with pytest.raises(ValueError, match="one for each of the 2 levels"):
        config(("ema", "ema", "ema"))


def test_a_word_in_place_of_a_tuple_is_told():
    with pytest.raises(ValueError, match="expected quantizer to be a tuple of names, .* got 'ema'"):
        config("ema")


@pytest.mark.parametrize(("quantizer", "codes"), [("fsq:3,3,3,3,3,3", 729), ("lfq", 64)])
def test_a_model_in_float64_decodes_what_it_encodes(quantizer, codes):
    """Without a projection, whose weight would say the type of what is looked up."""
    model = vq2.VQVAE2(config((quantizer,), num_embeddings=codes)).double().eval()
    images = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    assert model.decode(model.encode(images)).dtype == torch.float64
