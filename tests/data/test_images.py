"""Conversions, the stable hash and the in-memory set."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.data import ImageTensorDataset, to_float, to_uint8
from vqvae2_fast.data.images import is_held_out, stable_hash


def test_bytes_survive_the_round_trip_through_floats() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)


def test_to_float_spans_minus_one_to_one() -> None:
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_to_uint8_rounds_and_clamps_and_accepts_gradients() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 1 / 127.5 * 0.6 - 1, 1.0, 9.0, float("nan")])
    assert to_uint8(x.requires_grad_()).tolist() == [0, 0, 128, 1, 255, 255, 0]


def test_to_uint8_of_bfloat16_rounds_in_float32() -> None:
    x = torch.tensor([0.5], dtype=torch.bfloat16)
    assert to_uint8(x).tolist() == [191]


@pytest.mark.parametrize("convert", [to_float, to_uint8])
def test_conversion_refuses_int64(convert) -> None:
    with pytest.raises(TypeError, match=r"expected .* images, got int64"):
        convert(torch.zeros(1, dtype=torch.int64))


def test_stable_hash_is_pinned() -> None:
    # SHA-256("abc") begins ba7816bf8f01cfea.
    assert stable_hash("abc") == 0xBA7816BF8F01CFEA >> 1


def test_held_out_share_is_near_the_fraction_and_grows_with_it() -> None:
    names = [f"image{i}.png" for i in range(5000)]
    small = {name for name in names if is_held_out(name, 0.1)}
    large = {name for name in names if is_held_out(name, 0.3)}
    assert 400 < len(small) < 600
    assert small < large
    assert not any(is_held_out(name, 0.0) for name in names)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("a",) * (2**18 + 1), "262145 classes; at most 262144 are supported"),
        (
            ("a", "x" * 10**6),
            "the name of class 1 has 1000000 characters, at most 1024 .*: x+\\.{3}$",
        ),
        (("\ud800",), r"the name of class 0 is not Unicode text: \\ud800"),
        ((3,), "class 0 is named by <class 'int'>, not a string"),
    ],
    ids=["many", "long", "surrogate", "number"],
)
def test_class_names_have_limits(names, text) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        ImageTensorDataset(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), None, names)
    assert len(str(caught.value)) < 200


def test_the_fingerprint_follows_the_set() -> None:
    def of(images=None, labels=(0, 1), classes=("a", "b"), names=("x", "y")) -> str:
        pixels = torch.zeros(2, 3, 2, 2, dtype=torch.uint8) if images is None else images
        return ImageTensorDataset(pixels, torch.tensor(labels), classes, names).fingerprint()

    changed = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    changed[1, 2, 1, 1] = 1
    prints = [
        of(),
        of(images=changed),
        of(images=torch.zeros(2, 3, 2, 3, dtype=torch.uint8)),
        of(labels=(1, 0)),
        of(classes=("a", "c")),
        of(names=("x", "z")),
    ]
    assert of() == prints[0]
    assert len(set(prints)) == len(prints)


def test_dataset_gives_images_labels_and_shape() -> None:
    images = torch.arange(2 * 1 * 2 * 3, dtype=torch.uint8).view(2, 1, 2, 3)
    dataset = ImageTensorDataset(images, torch.tensor([1, -1]), ("a", "b"))
    image, label = dataset[0]
    assert torch.equal(image, images[0])
    assert (label, len(dataset), dataset.image_shape) == (1, 2, (1, 2, 3))


@pytest.mark.parametrize(
    ("images", "labels", "error", "text"),
    [
        (torch.zeros(2, 3, 4, 4), None, TypeError, "expected uint8 images, got float32"),
        (torch.zeros(3, 4, 4), None, TypeError, "uint8"),
        (
            torch.zeros(2, 2, 4, 4, dtype=torch.uint8),
            None,
            ValueError,
            r"C = 1 or 3, got \[2, 2, 4, 4\]",
        ),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.zeros(3, dtype=torch.int64),
            ValueError,
            r"expected labels \[2\], got \[3\]",
        ),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.tensor([0, 2]),
            ValueError,
            r"in \[0, 2\).*got values from 0 to 2",
        ),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.tensor([-2, 0]),
            ValueError,
            "got values from -2 to 0",
        ),
    ],
    ids=["float", "float3d", "channels", "label_count", "label_large", "label_small"],
)
def test_dataset_refuses_bad_input(images, labels, error, text) -> None:
    with pytest.raises(error, match=text):
        ImageTensorDataset(images, labels, ("a", "b"))
