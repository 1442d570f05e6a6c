"""Checkpoints of a sharded prior: written by two processes, read by any number, damaged.

The processes run this file as a script.
"""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.codes import CodeSet
from helpers.models import SMALL_TOP
from safetensors.torch import load_file, save_file

from vqvae2_fast.checkpoints import DamagedError, load, load_training, save
from vqvae2_fast.checkpoints.files import read_json
from vqvae2_fast.checkpoints.locate import latest, step_folder
from vqvae2_fast.checkpoints.shards import write_shard
from vqvae2_fast.checkpoints.sums import write_index, write_sums
from vqvae2_fast.console import Progress
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.weights_hash import weights_hash
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.sampling import calibrate, sample_codes
from vqvae2_fast.training import Stage, TrainConfig, prior_stage, sharded, train
from vqvae2_fast.training.sharded import whole

CONFIG = TrainConfig(
    steps=6,
    batch_size=2,
    global_batch=4,
    learning_rate=3e-3,
    warmup_steps=2,
    average_decay=0.9,
    validate_every=6,
    save_every=2,
    keep=3,
    shard=True,
)
FIRST, SECOND = "shard-00001-of-00002.safetensors", "shard-00002-of-00002.safetensors"


def stage(folder: Path) -> Stage:
    maps = [torch.randint(8, (9, 2, 2), generator=torch.Generator().manual_seed(6))]
    store = CodeSet(maps, 8, torch.full((9,), -1)).write(folder)
    torch.manual_seed(0)
    prior = PixelSNAIL(SMALL_TOP)
    calibrate(prior, [(maps[0], None, None)])
    return prior_stage(prior, store, store, CONFIG, level=0)


def run(made: Stage, out: Path) -> dict[str, torch.Tensor]:
    train(made, CONFIG, out=out, resume=True, progress=Progress(quiet=True))
    return {name: whole(value).contiguous() for name, value in made.model.state_dict().items()}


def shortened(source: Path, target: Path) -> Path:
    """A run as it was after step 4."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("step-000000006", "best"))
    return target


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    weights = run(stage(folder / f"codes{rank}"), folder / "run")
    if rank == 0:
        save_file(weights, folder / "weights")
        shortened(folder / "run", folder / "again")
    dist.barrier()
    weights = run(stage(folder / f"codes again{rank}"), folder / "again")
    if rank == 0:
        save_file(weights, folder / "weights again")
    gc.collect()  # wrappers of models are parts of cycles and hold the group
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, run_ranks) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks(__file__, 2, folder)
    return folder


@pytest.fixture
def damaged(made: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    shutil.copytree(made / "run", tmp_path / "run")
    return step_folder(tmp_path / "run", 6)


def test_load_gives_the_weights_of_the_run(made):
    expected = load_file(made / "weights")
    for name, value in load(made / "run").state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_resumed_run_ends_with_the_same_bits(made):
    first, again = load_file(made / "weights"), load_file(made / "weights again")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_one_process_continues_the_run_of_two(made, tmp_path):
    shortened(made / "run", tmp_path / "run")
    found, expected = run(stage(tmp_path / "codes"), tmp_path / "run"), load_file(made / "weights")
    for name, value in expected.items():
        # Sums over other parts round otherwise, and AdamW divides by the roots of small numbers.
        assert (found[name] - value).abs().max() <= 5e-5 * value.abs().max(), name
    assert not (step_folder(tmp_path / "run", 6) / "shards.json").exists()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_of_several_processes_reads_its_rows(made, count):
    path = step_folder(made / "run", 6)
    expected = load_training(path)
    shares = [load_training(path, share=(rank, count)) for rank in range(count)]
    for part in ("average", "optimizer"):
        for name, value in getattr(expected, part).items():
            pieces = [getattr(share, part)[name] for share in shares]
            assert torch.equal(torch.cat(pieces) if value.ndim else pieces[0], value), name


def test_a_calibration_is_kept_as_that_of_the_weights_before_training(made, tmp_path):
    prior = load(made / "run", expect=PixelSNAIL)
    before = stage(tmp_path / "codes").model
    assert prior.calibration.weights_hash == weights_hash(before) != weights_hash(prior)


def test_one_process_cannot_save_a_sharded_model(tmp_path):
    model = PixelSNAIL(SMALL_TOP)
    model.__class__ = type("FSDPPixelSNAIL", (PixelSNAIL,), {})  # as FSDP2 does
    with pytest.raises(ValueError, match="expected a whole model, got a sharded PixelSNAIL,"):
        save(model, tmp_path / "model")


def test_the_prior_draws(made):
    codes = sample_codes(load(made / "run"), 2)
    assert codes.shape == (2, 2, 2)


def test_a_missing_shard_is_named_and_the_others_are_read(damaged):
    (damaged / FIRST).unlink()
    with pytest.raises(DamagedError, match=f"{FIRST} is missing. 1 of 2 shards are whole") as error:
        load(damaged)
    assert f"before it is whole: {step_folder(damaged.parents[1], 4)}" in str(error.value)
    assert load_file(damaged / SECOND)["model.head.bias"].shape == (4,)


def test_a_truncated_shard_is_named(damaged):
    size = (damaged / SECOND).stat().st_size
    (damaged / SECOND).write_bytes((damaged / SECOND).read_bytes()[:-1])
    with pytest.raises(DamagedError, match=f"{SECOND} bytes is {size - 1}, shards.json says"):
        load_training(damaged)


def test_swapped_shards_are_named(damaged):
    (damaged / FIRST).rename(damaged / "other")
    (damaged / SECOND).rename(damaged / FIRST)
    (damaged / "other").rename(damaged / SECOND)
    with pytest.raises(DamagedError, match=f"{FIRST} is shard 2 .*; {SECOND} is shard 1 of this"):
        load(damaged)


def test_a_shard_of_another_save_is_named(damaged):
    shutil.copy(step_folder(damaged.parents[1], 4) / FIRST, damaged / FIRST)
    with pytest.raises(DamagedError, match=f"{FIRST} is of another save"):
        load(damaged)
    (damaged / "files.json").unlink()  # which shards do not stand in
    with pytest.raises(DamagedError, match=f"{FIRST} is of another save"):
        load(damaged)


def test_a_number_in_one_shard_and_rows_in_the_next_are_refused(damaged):
    tensors = load_file(damaged / FIRST) | {"model.head.bias": torch.zeros(())}
    index = read_json(damaged / "shards.json")
    changed = write_shard(damaged, 0, 2, index["save"], tensors)
    write_index(damaged, index["save"], [changed, index["shards"][1]])
    write_sums(damaged)
    with pytest.raises(DamagedError, match=f"{SECOND}: model.head.bias does not fit"):
        load(damaged)


def test_a_flipped_bit_is_found(damaged):
    content = bytearray((damaged / FIRST).read_bytes())
    content[-1] ^= 1
    (damaged / FIRST).write_bytes(content)
    with pytest.raises(DamagedError, match=f"{FIRST} crc32 is .*, shards.json says"):
        load(damaged)


def test_nothing_is_left_of_a_shard_that_cannot_be_written(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("No space left")

    monkeypatch.setattr(sharded, "write_shard", full)
    save = sharded.ShardedSave(
        Ranks(), tmp_path / "step", PixelSNAIL(SMALL_TOP), {}, state={}, class_names=()
    )
    with pytest.raises(OSError, match="step was not saved; process 0: No space left"):
        save.finish(block=True)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_has_no_name_before_all_shards_are_written(tmp_path):
    save = sharded.ShardedSave(
        Ranks(),
        tmp_path / "checkpoints" / "step-000000001",
        PixelSNAIL(SMALL_TOP),
        {},
        state={"step": 1},
        class_names=(),
    )
    assert latest(tmp_path) is None
    assert save.finish(block=True)
    assert latest(tmp_path) == tmp_path / "checkpoints" / "step-000000001"


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
