"""Damaged or malicious checkpoints: an error gives the reason, and nothing else happens."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from helpers.models import TINY_PRIOR, TINY_VQVAE
from safetensors.torch import load_file, save_file

from vqvae2_fast.checkpoints import sums
from vqvae2_fast.checkpoints.checkpoint import (
    DamagedError,
    load,
    load_training,
    save,
    save_training,
)
from vqvae2_fast.checkpoints.files import reading_safetensors
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling import calibrate
from vqvae2_fast.sampling.pipeline import Pipeline

FILES = (
    "config.json",
    "model.safetensors",
    "average.safetensors",
    "optimizer.safetensors",
    "state.json",
)


def save_step(run, step: int) -> None:
    torch.manual_seed(step)
    model = VQVAE2(TINY_VQVAE)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    save_training(
        run / "checkpoints" / f"step-{step:09d}",
        model,
        average=weights,
        optimizer={f"{name}.exp_avg": weight for name, weight in weights.items()},
        state={"step": step, "train": {}, "metrics": {}},
    )


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints."""
    for step in (4, 8):
        save_step(tmp_path / "run", step)
    return tmp_path / "run"


@pytest.fixture
def step(run):
    """The newer one, without the checksums that would find any change first."""
    folder = run / "checkpoints" / "step-000000008"
    (folder / "files.json").unlink()
    return folder


def flip(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_flipped_bit_in_any_file_is_found(run, name, place):
    path = run / "checkpoints" / "step-000000008" / name
    size = path.stat().st_size
    flip(path, {"start": 0, "middle": size // 2, "end": size - 1}[place])
    with pytest.raises(DamagedError, match=f"{name} is damaged: crc32 is"):
        load_training(run)


def test_a_flipped_bit_in_a_calibration_is_found(tmp_path):
    torch.manual_seed(0)
    prior = PixelSNAIL(TINY_PRIOR).eval()
    calibrate(prior, [(torch.zeros(1, 2, 2, dtype=torch.long), None, None)])
    save(prior, tmp_path / "prior")
    flip(tmp_path / "prior" / "calibration.safetensors", -2)
    with pytest.raises(DamagedError, match=r"calibration\.safetensors is damaged: crc32 is"):
        load(tmp_path / "prior")


def test_checksums_are_computed_once(run, monkeypatch):
    computed, crc32 = [], sums._crc32
    monkeypatch.setattr(sums, "_crc32", lambda path: computed.append(path.name) or crc32(path))
    load_training(run)
    assert sorted(computed) == sorted(FILES)


def test_the_average_cannot_go_missing_unnoticed(run):
    folder = run / "checkpoints" / "step-000000008"
    (folder / "average.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"average\.safetensors is missing"):
        load(folder)


def test_a_file_that_was_added_is_refused(tmp_path):
    save(VQVAE2(TINY_VQVAE), tmp_path / "model")
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "model/average.safetensors")
    with pytest.raises(DamagedError, match=r"files\.json does not know average\.safetensors"):
        load(tmp_path / "model")


@pytest.mark.parametrize("read", [load, load_training])
def test_the_newest_whole_checkpoint_before_a_damaged_one_is_offered(run, read):
    save_step(run, 12)
    folder = run / "checkpoints"
    for damaged in (8, 12):
        flip(folder / f"step-{damaged:09d}" / "model.safetensors", -1)
    with pytest.raises(
        DamagedError,
        match=r"12/model\.safetensors is damaged(.|\n)*is whole: \S*step-000000004\. Load",
    ) as caught:
        read(run)
    command = str(caught.value).split("`")[1].split()
    assert command[0] == "mv"
    os.rename(*command[1:])
    shutil.move(folder / "step-000000008", folder / "step-000000008.damaged")
    assert load_training(run).state["step"] == 4


def test_a_pickle_in_place_of_weights_is_refused_and_never_run(step, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    for name in FILES:
        torch.save({"x": Attack()}, step / name)
    with pytest.raises(DamagedError, match=r"config\.json is damaged or not JSON"):
        load(step)
    save(VQVAE2(TINY_VQVAE), tmp_path / "model")
    (tmp_path / "model" / "files.json").unlink()
    torch.save({"x": Attack()}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(
        DamagedError, match=r"not a safetensors file but a pickle.* never read here"
    ):
        load(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(
        DamagedError, match=r"not a safetensors file but a pickle.* never read here"
    ):
        load(tmp_path / "model")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("size", [2**63, 2**40, 10**8, 2**23 + 1, 0, 1])
def test_a_header_that_claims_any_size_is_refused(step, size):
    path = step / "model.safetensors"
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    with pytest.raises(DamagedError, match=r"model\.safetensors is damaged or not a safetensors"):
        load(step)


def test_a_header_of_a_sparse_file_without_end_is_not_read(step):
    path = step / "model.safetensors"
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", 2**39))
        file.truncate(2**40)
    with pytest.raises(DamagedError, match=r"its header has 549755813888 bytes"):
        load(step)


def test_a_file_beyond_the_memory_of_the_process_is_named(step):
    resource = pytest.importorskip("resource")
    with (step / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2) + b"{}")
        file.truncate(2**40)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**39, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"model\.safetensors has 1099511627776 bytes, for wh"):
            load(step)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("name", ["config.json", "state.json"])
def test_a_text_without_end_is_not_read(step, name):
    with (step / name).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DamagedError, match=f"{name} is larger than 8388608 bytes"):
        load_training(step)


def test_a_file_that_a_read_would_wait_for_is_refused(step):
    (step / "model.safetensors").unlink()
    os.mkfifo(step / "model.safetensors")
    with pytest.raises(DamagedError, match=r"model\.safetensors is a FIFO, not a regular file"):
        load(step)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_channels": 2**40},
        {"num_residual_blocks": 10**9},
        {"num_embeddings": 2**40},
        {"embedding_dim": 10**9},
        {"image_channels": 10**12},
        {"strides": [2**62]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_configuration_larger_than_its_weights_is_refused_before_it_is_built(step, change):
    header = json.loads((step / "config.json").read_text())
    header["config"] |= change | ({"image_size": [2**62] * 2} if "strides" in change else {})
    (step / "config.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="larger model than|not describe a model|to be torch"):
        load(step)


@pytest.mark.parametrize(
    "change",
    [
        {"num_blocks": 10**9},
        {"layers_per_block": 10**9},
        {"num_output_layers": 10**9},
        {"num_condition_layers": 10**9},
        {"kernel_size": 10**5 + 1},
        {"channels": 2**40},
        {"size": [2**40, 2**40]},
        {"num_classes": 10**12},
        {"num_heads": 0},
        {"condition_sizes": [[0, 1]]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_prior_larger_than_its_weights_is_refused_before_it_is_built(tmp_path, change):
    save(PixelSNAIL(TINY_PRIOR), tmp_path / "prior")
    (tmp_path / "prior" / "files.json").unlink()
    header = json.loads((tmp_path / "prior" / "config.json").read_text())
    header["config"] |= change
    (tmp_path / "prior" / "config.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"larger model than|not describe a model|to be torch|fit"):
        load(tmp_path / "prior")


def test_a_pipeline_that_contains_itself_is_refused(tmp_path):
    save(Pipeline(VQVAE2(TINY_VQVAE), [PixelSNAIL(TINY_PRIOR)]), tmp_path / "pipeline")
    shutil.rmtree(tmp_path / "pipeline" / "prior_top")
    (tmp_path / "pipeline" / "prior_top").symlink_to(tmp_path / "pipeline")
    with pytest.raises(ValueError, match="expected a prior, found a pipeline"):
        load(tmp_path / "pipeline")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model", "average"])
def test_weights_that_are_not_finite_are_refused_unless_asked_for(step, name, value):
    path = step / f"{name}.safetensors"
    tensors = load_file(path)
    key = next(key for key, tensor in tensors.items() if tensor.numel() > 1)
    tensors[key].view(-1)[-1] = value
    save_file(tensors, path)
    for read in (load, load_training):
        with pytest.raises(ValueError, match=f"{path}: expected finite numbers, got 1 of .*{key}"):
            read(step)
    weights = load(step, check_finite=False).state_dict()
    average = load_file(step / "average.safetensors")
    for other, tensor in (tensors | average).items():
        assert torch.equal(weights[other].nan_to_num(), tensor.nan_to_num())


def test_finite_weights_whose_sum_overflows_are_loaded(step):
    path = step / "average.safetensors"
    tensors = load_file(path)
    largest = {name: tensor.fill_(3e38) for name, tensor in tensors.items()}
    save_file(largest, path)
    load(step)


@pytest.mark.parametrize(
    "changed",
    [lambda moment: moment[None, :1], torch.sum, torch.Tensor.double],
    ids=["shape", "number", "float64"],
)
def test_an_optimiser_of_other_weights_is_refused(step, changed):
    # A fused optimiser would read and write beyond the end of a smaller tensor.
    moments = load_file(step / "optimizer.safetensors")
    name = next(iter(moments))
    save_file(moments | {name: changed(moments[name])}, step / "optimizer.safetensors")
    with pytest.raises(ValueError, match=f"{name} fits no weight of the model"):
        load_training(step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "step to be an integer >= 0, got -1"),
        ({"metrics": None}, "metrics to be an object"),
        ({"train": {"batch_size": 0}}, r"train\.batch_size to be an integer >= 1, got 0"),
    ],
    ids=["step", "metrics", "batch_size"],
)
def test_a_state_that_is_none_of_ours_is_refused_by_field(step, change, message):
    state = json.loads((step / "state.json").read_text())
    (step / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(ValueError, match=message):
        load_training(step)


def test_a_path_that_is_not_utf8_is_no_damage(tmp_path):
    path = tmp_path / "n\udcff" / "model.safetensors"
    with (
        pytest.raises(ValueError, match="is not UTF-8.* rename the folder") as caught,
        reading_safetensors(path),
    ):
        pass
    assert not isinstance(caught.value, DamagedError)
