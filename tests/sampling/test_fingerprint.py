"""A fingerprint changes with every change of the tensors, in place or by another tensor."""

import pytest
import torch

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import fingerprint as module
from vqvae2_fast.sampling.fingerprint import fingerprint

MIB = 1 << 20  # the compiled hash takes pieces of this many bytes, the other one rows of 16 KiB


@pytest.fixture(params=["compiled", "torch"])
def tensors(request, monkeypatch):
    """Two weights of 3 MiB, a small one and a bias, with values whose signs and sums balance."""
    if request.param == "torch":
        monkeypatch.setattr(_native, "module", None)
    elif _native.module is None:
        pytest.skip("this install has no compiled module")
    generator = torch.Generator().manual_seed(0)
    large = [torch.randn(3 * MIB // 4, generator=generator).view(-1, 4) for _ in range(2)]
    small = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.5, -0.5]])
    return [*large, small, torch.zeros(2)]


def swap_in_place(tensor, one, other):
    tensor[one], tensor[other] = tensor[other].clone(), tensor[one].clone()


def swap_blocks(tensor, size):
    flat = tensor.view(-1)
    swap_in_place(flat, slice(0, size), slice(size, 2 * size))


def exchange(one, other):
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


CHANGES = {
    "two rows swapped": lambda t: swap_in_place(t[2], 0, 1),
    "order reversed": lambda t: t[0].copy_(t[0].flip(0)),
    "all signs": lambda t: t[2].neg_(),
    "signs of one column": lambda t: t[0][:, 1].neg_(),
    "signs of two numbers": lambda t: t[0].view(-1)[1:4:2].neg_(),
    "sign of a zero": lambda t: t[3][1].neg_(),
    "the last bit of one number": lambda t: t[1].view(torch.int32)[7].bitwise_xor_(1),
    "a write through .data": lambda t: t[2].data.view(-1)[5].fill_(0.25),
    "two pieces swapped": lambda t: swap_blocks(t[0], MIB // 4),
    "two rows of multipliers swapped": lambda t: swap_blocks(t[0], module._COLUMNS),
    "two tensors exchanged": lambda t: exchange(t[0], t[1]),
    "rolled by one": lambda t: t[1].copy_(t[1].roll(1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_in_place_is_seen(tensors, change):
    before = fingerprint(tensors)
    assert fingerprint(tensors) == before
    change(tensors)
    assert fingerprint(tensors) != before


def test_equal_tensors_in_other_memory_have_the_same_fingerprint(tensors):
    assert fingerprint([tensor.clone() for tensor in tensors]) == fingerprint(tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_every_dtype_counts(tensors, dtype):
    values = torch.tensor([1, 0, 1, 1, 1, 0, 0]).to(dtype)
    before = fingerprint([values[1:]])
    values[1:].copy_(values[1:].flip(0))
    assert fingerprint([values[1:]]) != before


def test_it_does_not_depend_on_the_number_of_threads(tensors):
    threads = torch.get_num_threads()
    before = fingerprint(tensors)
    try:
        torch.set_num_threads(3)
        assert fingerprint(tensors) == before
    finally:
        torch.set_num_threads(threads)
