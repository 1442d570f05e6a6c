"""Segments of a model that are recomputed, compiled or both: the weights of a plain run."""

from __future__ import annotations

import functools
import gc
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest
import torch
import torch.distributed as dist
from helpers.codes import CodeSet
from helpers.compare import every_call_trains
from helpers.models import SMALL_PRIOR, SMALL_VQVAE

from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.encoder_decoder import PlainConv2d
from vqvae2_fast.ops import _native
from vqvae2_fast.ops._training import rounds_convolutions
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training import Stage, TrainConfig, prior_stage, train, vqvae_stage
from vqvae2_fast.training.network import autocast_of, prepared

CONFIG = TrainConfig(
    steps=3, batch_size=2, accumulate=2, learning_rate=3e-3, warmup_steps=1, average_decay=0.9
)
STORES = TemporaryDirectory()


def vqvae(config: TrainConfig) -> Stage:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (9, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images = ImageTensorDataset(pixels)
    return vqvae_stage(VQVAE2(replace(SMALL_VQVAE, restart=0.5)), images, images, config)


def prior(config: TrainConfig, channels: int = 8) -> Stage:
    generator = torch.Generator().manual_seed(6)
    maps = [torch.randint(8, (9, side, side), generator=generator) for side in (2, 4)]
    labels = torch.randint(3, (9,), generator=generator)
    store = CodeSet(maps, 8, labels, ("a", "b", "c")).write(
        Path(mkdtemp(dir=STORES.name)) / "codes"
    )
    torch.manual_seed(0)
    sizes = {"channels": channels, "residual_channels": channels}
    model = PixelSNAIL(replace(SMALL_PRIOR, dropout=0.2, num_output_layers=1, **sizes))
    return prior_stage(model, store, store, config, level=1)


@pytest.mark.parametrize("computes_in_bfloat16", [False, True])
def test_automatic_precision_is_bfloat16_where_the_processor_is_faster_in_it(
    monkeypatch, computes_in_bfloat16: bool
):
    """A prior's own kernels are faster on any processor."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: computes_in_bfloat16)
    config = TrainConfig(precision="auto")
    chosen = [autocast_of(make(config).model, config)._enabled for make in (vqvae, prior)]
    assert chosen == [computes_in_bfloat16, False]


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("make", [vqvae, prior])
def test_only_automatic_precision_rounds_the_convolutions_of_a_prior(
    make, precision: str, monkeypatch
):
    monkeypatch.setattr(_native, "has_tiles", lambda: True)
    config = TrainConfig(precision=precision)
    with prepared(make(config).model, config, Ranks()):
        assert rounds_convolutions() == (make is prior and precision == "auto")
    assert not rounds_convolutions()


BOTH = pytest.mark.parametrize("make", [vqvae, prior])


def trained(make, **changes: object) -> dict[str, torch.Tensor]:
    config = replace(CONFIG, **changes)
    stage = make(config)
    train(stage, config, progress=Progress(quiet=True))
    return stage.model.state_dict()


def assert_equal(found, expected) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@BOTH
def test_recomputed_segments_train_to_the_same_bits(make):
    """Dropout is drawn again alike, and codebooks count each vector once."""
    assert_equal(trained(make, recompute=True), trained(make))


@pytest.mark.skipif(not _native.has_tiles(), reason="a processor with AMX")
def test_recomputed_convolutions_are_rounded_as_the_first_time():
    wide = partial(prior, channels=16)
    with every_call_trains():
        rounded = trained(wide, precision="auto")
        assert_equal(trained(wide, precision="auto", recompute=True), rounded)
        exact = trained(wide)
    assert any(not torch.equal(exact[name], value) for name, value in rounded.items())


def test_compiled_and_recomputed_segments_train_to_the_same_weights(monkeypatch):
    """Each is one graph. Inductor takes minutes for them: tools/many_processes.py runs it."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    found = trained(prior, compile=True, recompute=True)
    for name, value in trained(prior).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def kept_bytes(config: TrainConfig) -> int:
    """What autograd keeps of a forward of the prior, its weights included."""
    stage, storages = prior(config), {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    batch = next(stage.batches(0))
    with (
        prepared(stage.model, config, Ranks()) as network,
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        stage.loss(network, batch)
    return sum(storage.nbytes() for storage in storages.values())


def test_recomputed_segments_are_not_kept():
    assert kept_bytes(replace(CONFIG, recompute=True)) < kept_bytes(CONFIG) / 2


def test_a_model_is_as_before_once_it_is_trained():
    config = replace(CONFIG, recompute=True, steps=1)
    stage = prior(config)
    train(stage, config, progress=Progress(quiet=True))
    assert not any("forward" in vars(module) for module in stage.model.modules())


def warnings_of_a_copy() -> list[str]:
    model = PlainConv2d(48, 48, 1).to(memory_format=torch.channels_last)
    with (
        warnings.catch_warnings(record=True) as warned,
        prepared(model, CONFIG, Ranks(count=2)) as network,
    ):
        network(torch.randn(32, 48, 16, 16)).sum().backward()
    return [str(warning.message) for warning in warned]


def test_processes_are_not_warned_of_strides_that_mean_the_same(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        warned = warnings_of_a_copy()
    finally:
        # A copy is part of a cycle and holds the group. If it were the last to let go of the group,
        # it would wait for threads that wait for the interpreter's lock, which it holds.
        gc.collect()
        dist.destroy_process_group()
    assert [text for text in warned if "strides" in text] == []
