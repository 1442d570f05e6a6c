"""torch.export of the models in evaluation, with any batch size."""

from dataclasses import replace

import pytest
import torch
from helpers.models import SMALL_PRIOR
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2, VQVAE2Output

BATCH = {0: torch.export.Dim("batch", max=64)}


class Encoder(nn.Module):
    def __init__(self, model: VQVAE2) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.encode(images)


class Decoder(Encoder):
    def forward(self, codes: list[Tensor]) -> Tensor:
        return self.model.decode(codes)


@pytest.fixture(scope="module")
def vqvae() -> VQVAE2:
    torch.manual_seed(0)
    sizes = {"hidden_channels": 8, "residual_channels": 4, "num_embeddings": 16}
    config = VQVAE2Config(
        image_size=(16, 16), strides=(2, 2), embedding_dim=4, init="normal", **sizes
    )
    return VQVAE2(config).eval()


def assert_exports(model: nn.Module, dynamic: object, first: tuple, second: tuple) -> None:
    """The program exported with `first` returns what the model returns for `second`."""
    with torch.no_grad():
        program = torch.export.export(model, first, dynamic_shapes=dynamic).module()
        expected, actual = model(*second), program(*second)
    assert type(actual) is type(expected)
    for one, other in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other)


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16) * 2 - 1


@pytest.mark.filterwarnings("ignore:The tensor attributes? self.quantizers")
def test_the_autoencoder(vqvae: VQVAE2) -> None:
    assert_exports(vqvae, (BATCH,), (images(3),), (images(5),))


def test_images_to_codes(vqvae: VQVAE2) -> None:
    assert_exports(Encoder(vqvae), (BATCH,), (images(3),), (images(5),))


def test_codes_to_images(vqvae: VQVAE2) -> None:
    codes = (vqvae.encode(images(3)),), (vqvae.encode(images(5)),)
    assert_exports(Decoder(vqvae), ([BATCH, BATCH],), *codes)


def test_a_prior() -> None:
    torch.manual_seed(0)
    prior = PixelSNAIL(
        replace(SMALL_PRIOR, size=(8, 8), num_embeddings=16, condition_sizes=((4, 4),))
    ).eval()

    def arguments(count: int) -> tuple[Tensor, list[Tensor], Tensor]:
        coarse = torch.randint(16, (count, 4, 4))
        return torch.randint(16, (count, 8, 8)), [coarse], torch.randint(4, (count,))

    assert_exports(prior, (BATCH, [BATCH], BATCH), arguments(3), arguments(5))


def test_an_output_is_a_tree_of_tensors(vqvae: VQVAE2) -> None:
    output = vqvae(images(2))
    doubled = pytree.tree_map(lambda tensor: tensor * 2, output)
    assert isinstance(doubled, VQVAE2Output)
    assert torch.equal(doubled.losses["top"], output.losses["top"] * 2)
