"""`encode` gives a vector the same code in any batch and on any number of threads.

The vectors lie on boundaries between codes, where the last bit of a sum in another order shows.
"""

import pytest
import torch

import vqvae2_fast as vq2
from vqvae2_fast.modules import MultiHeadVQ, RandomProjectionQuantizer, VectorQuantizer

D, COUNT = 64, 120
MAKE = {
    "ema": lambda: vq2.VectorQuantizerEMA(64, D),
    "cosine": lambda: vq2.VectorQuantizerEMA(64, D, metric="cosine"),
    "gradient": lambda: VectorQuantizer(64, D),
    "direction": lambda: VectorQuantizer(64, D, metric="direction"),
    "simvq": lambda: vq2.SimVQ(99, D),
    "ibq": lambda: vq2.IBQ(99, D),
    "fsq": lambda: vq2.FSQ([8, 5, 5, 5], 4),
    "fsq_projected": lambda: vq2.FSQ([8, 8, 8, 5, 5, 5], D),
    "residual_fsq": lambda: vq2.ResidualFSQ([4, 3, 5], 3, D),
    "lfq": lambda: vq2.LFQ(2**18, D),
    "bsq": lambda: vq2.BSQ(2**40, D),
    "residual": lambda: vq2.ResidualVQ(32, D, 4),
    "grouped": lambda: vq2.GroupedResidualVQ(2, 32, D, 2),
    "heads": lambda: MultiHeadVQ(4, 32, D),
    "scales": lambda: vq2.MultiScaleVQ(32, D, (1, 2, (3, 4)), num_phi=1),
    "random_projection": lambda: RandomProjectionQuantizer(256, D, 18),
}


def on_boundaries(quantizer: torch.nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """By halving the way between vectors of different codes until no number lies between them."""
    first, second = torch.randn(2, COUNT, *shape)
    codes = quantizer.encode(first)
    for _ in range(40):
        middle = (first + second) / 2
        same = (quantizer.encode(middle) == codes).reshape(COUNT, -1).all(1)
        same = same.view(-1, *[1] * len(shape))
        first, second = torch.where(same, middle, first), torch.where(same, second, middle)
    return first


@pytest.mark.parametrize("name", MAKE)
def test_a_code_does_not_depend_on_the_batch_or_on_threads(name, with_threads):
    torch.manual_seed(0)
    quantizer = MAKE[name]()
    shape = (3, 4, D) if name == "scales" else (quantizer.embedding_dim,)
    with torch.no_grad():
        quantizer(torch.randn(COUNT, *shape))
    quantizer.eval()
    z = with_threads(1, lambda: on_boundaries(quantizer, shape))
    expected = with_threads(1, lambda: quantizer.encode(z))
    for threads in (1, 2, 4):
        for size in (1, 2, 3, 7, 16, 50, COUNT):
            codes = with_threads(
                threads, lambda size=size: [quantizer.encode(part) for part in z.split(size)]
            )
            assert torch.equal(torch.cat(codes), expected), (threads, size)


@pytest.mark.parametrize("name", ["fsq_projected", "lfq", "simvq"])
def test_a_hook_on_a_projection_is_called(name):
    quantizer = MAKE[name]().eval()
    layer = quantizer.code_transform if name == "simvq" else quantizer.project_in
    z = torch.randn(COUNT, D)
    before = quantizer.encode(z)
    layer.register_forward_hook(lambda module, arguments, output: -output)
    assert not torch.equal(quantizer.encode(z), before)
