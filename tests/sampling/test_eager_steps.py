"""The pixel phase of engine `eager` can be captured: fixed buffers, and no value is read."""

import pytest
import torch
from helpers.models import prior_inputs, tiny_prior
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae2_fast.sampling import interface_of, plan_of
from vqvae2_fast.sampling.engines.eager import Kind, _Network
from vqvae2_fast.sampling.noise import DrawNoise
from vqvae2_fast.sampling.request import DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings

# These return a value to Python, or shapes that depend on one.
LOOKS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal")


class Recorder(TorchDispatchMode):
    """Records every operator called: its name, whether it writes to a given buffer, and the
    address, storage, shape and strides of each tensor that it returns."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else [result]
        seen = [
            (t.data_ptr(), t.untyped_storage().data_ptr(), tuple(t.shape), t.stride())
            for t in results
            if isinstance(t, torch.Tensor)
        ]
        self.calls.append((func.overloadpacket.__name__, func._schema.is_mutable, seen))
        return result


def network_of(mask, attention, rule, known):
    prior = tiny_prior(
        mask=mask,
        attention=attention,
        num_classes=3,
        num_output_layers=1,
        condition_sizes=((2, 3),),
    )
    inputs = prior_inputs(prior, 2)
    noise = DrawNoise(2, 6, 13, torch.device("cpu"))
    request = DrawRequest(
        2, inputs["condition"], inputs["labels"], inputs["codes"] if known else None, noise, rule
    )
    network = _Network(plan_of(prior, interface_of(prior)), Kind.of(request))
    network.start_map(request)
    return network


@pytest.mark.parametrize("mask", ["exclude", "include", "down"])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize(
    ("rule", "known"),
    [
        (DrawSettings(), False),
        (DrawSettings(0.0), True),
        (DrawSettings(0.8, top_k=5, top_p=0.9, guidance_scale=2.0), True),
    ],
    ids=["plain", "greedy", "filtered and guided"],
)
@torch.no_grad()
def test_a_rows_steps_use_fixed_buffers_alone(mask, attention, rule, known, monkeypatch):
    network = network_of(mask, attention, rule, known)
    rows = []
    for i in range(3):
        network.start_row(i)
        # As on a GPU: shapes are those of every row.
        network.positions.reach = 24
        for cache in network.attention:
            cache.look_back()
        with Recorder() as recorder:
            network.draw_row()
        network.finish_row(i)
        rows.append(recorder.calls)
    assert rows[0] == rows[1] == rows[2]
    # Equal addresses could be those of memory that was freed and allocated again, so every result
    # must be a buffer that the operator was told to write to, or a view of one.
    buffers = {at for _, writes, results in rows[0] if writes for _, at, _, _ in results}
    for name, _, results in rows[0]:
        assert name not in LOOKS
        assert {at for _, at, _, _ in results} <= buffers, name


@torch.no_grad()
def test_a_reach_over_the_whole_map_changes_nothing_but_roundings():
    network, whole = (network_of("include", True, DrawSettings(), True) for _ in range(2))
    for i in range(4):
        for each in (network, whole):
            each.start_row(i)
        whole.positions.reach = 24
        for cache in whole.attention:
            cache.look_back()
        for each in (network, whole):
            each.draw_row()
            each.finish_row(i)
        torch.testing.assert_close(network.logits, whole.logits)
