"""Checkpoints: what is saved is loaded again, and what must not load is refused with its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest
import torch
from helpers.checkpoints import assert_equal, edit, small_priors
from helpers.models import SMALL_VQVAE
from safetensors.torch import load_file, save_file

from vqvae2_fast.checkpoints import checkpoint
from vqvae2_fast.checkpoints.checkpoint import load, load_training, save
from vqvae2_fast.checkpoints.pretrained import pretrained_folder
from vqvae2_fast.checkpoints.sums import write_sums
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling.pipeline import Pipeline


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    save(VQVAE2(SMALL_VQVAE), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "model", [VQVAE2(SMALL_VQVAE), *small_priors()], ids=["vqvae", "top", "bottom"]
)
def test_a_model_comes_back_as_it_was(model, tmp_path):
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert_equal(model, loaded)


def test_a_model_in_another_memory_format_comes_back(tmp_path):
    model = VQVAE2(SMALL_VQVAE).to(memory_format=torch.channels_last)
    save(model, tmp_path / "model")
    assert_equal(model, load(tmp_path / "model"))


def test_a_compiled_model_is_saved_as_its_original(tmp_path):
    prior = small_priors()[0]
    prior.class_names = ("cat", "dog")
    save(torch.compile(prior), tmp_path / "prior")
    assert_equal(prior, load(tmp_path / "prior"))
    assert load(tmp_path / "prior").class_names == prior.class_names


def test_a_pipeline_of_compiled_models_is_saved(tmp_path):
    models = [VQVAE2(SMALL_VQVAE), *small_priors()]
    vqvae, *priors = map(torch.compile, models)
    save(Pipeline(vqvae, priors), tmp_path / "pipeline")
    loaded = load(tmp_path / "pipeline", expect=Pipeline)
    for model, found in zip(models, (loaded.vqvae, *loaded.priors), strict=True):
        assert_equal(model, found)


def test_weights_saved_in_bfloat16_load_as_their_rounded_float32(tmp_path):
    pipeline = Pipeline(VQVAE2(SMALL_VQVAE), small_priors())
    save(pipeline, tmp_path / "whole")
    save(pipeline, tmp_path / "rounded", dtype=torch.bfloat16)
    loaded = load(tmp_path / "rounded")
    parts = ("vqvae", "prior_top", "prior_bottom")
    for name, before, after in zip(
        parts,
        (pipeline.vqvae, *pipeline.priors),
        (loaded.vqvae, *loaded.priors),
        strict=True,
    ):
        assert json.loads((tmp_path / "rounded" / name / "config.json").read_text())["dtype"] == (
            "bfloat16"
        )
        found = after.state_dict()
        for key, tensor in before.state_dict().items():
            rounded = tensor.bfloat16().float() if tensor.is_floating_point() else tensor
            assert found[key].dtype == tensor.dtype
            assert torch.equal(found[key], rounded), key
        sizes = [
            sum(tensor.nbytes for tensor in load_file(folder / name / "model.safetensors").values())
            for folder in (tmp_path / "rounded", tmp_path / "whole")
        ]
        assert sizes[0] < 0.51 * sizes[1]


def test_int8_keeps_the_matrices_of_priors_in_integers_and_all_else_in_bfloat16(tmp_path):
    pipeline = Pipeline(VQVAE2(SMALL_VQVAE), small_priors())
    save(pipeline, tmp_path / "small", dtype=torch.int8)
    loaded = load(tmp_path / "small", expect=Pipeline)
    kept = {"vqvae": "bfloat16", "prior_top": "int8", "prior_bottom": "int8"}
    for name, dtype in kept.items():
        assert json.loads((tmp_path / "small" / name / "config.json").read_text())["dtype"] == dtype
    before = pipeline.priors[0].state_dict()
    integers = load_file(tmp_path / "small" / "prior_top" / "model.safetensors")
    for key, tensor in loaded.priors[0].state_dict().items():
        if integers[key].dtype == torch.int8:
            rows, found = before[key].flatten(1), tensor.flatten(1)
            assert integers[key].flatten(1).abs().amax(1).eq(127).all()
            within = rows.abs().amax(1, keepdim=True) / 127 / 2 * (1 + 1e-5)
            assert ((rows - found).abs() <= within).all(), key
        elif tensor.is_floating_point():
            assert torch.equal(tensor, before[key].bfloat16().float()), key
    kinds = {integers[key].dtype for key in before}
    assert kinds == {torch.int8, torch.bfloat16}


def test_a_scale_that_carries_int8_weights_beyond_float32_is_refused(tmp_path):
    prior = small_priors()[0]
    save(prior, tmp_path / "prior", dtype=torch.int8)
    file = tmp_path / "prior" / "model.safetensors"
    tensors = load_file(file)
    scale = next(name for name in tensors if name.endswith(".scale"))
    tensors[scale].fill_(3e38)
    save_file(tensors, file)
    write_sums(tmp_path / "prior")
    with pytest.raises(
        ValueError, match=f"expected finite numbers.*{scale.removesuffix('.scale')}"
    ):
        load(tmp_path / "prior")
    weights = load(tmp_path / "prior", check_finite=False).state_dict()
    assert weights[scale.removesuffix(".scale")].isinf().any()


@pytest.mark.parametrize(("dtype", "version"), [(torch.bfloat16, 1), (torch.int8, 2)])
def test_only_int8_asks_for_a_newer_reader(tmp_path, dtype: torch.dtype, version: int):
    save(Pipeline(VQVAE2(SMALL_VQVAE), small_priors()), tmp_path / "p", dtype=dtype)
    for folder in (tmp_path / "p", tmp_path / "p" / "prior_top"):
        assert json.loads((folder / "config.json").read_text())["version"] == version


def test_other_dtypes_of_the_file_are_refused(tmp_path, saved):
    with pytest.raises(TypeError, match="one of .*bfloat16.*, got torch.float16"):
        save(VQVAE2(SMALL_VQVAE), tmp_path / "half", dtype=torch.float16)
    edit(saved, dtype="float8")
    with pytest.raises(ValueError, match="dtype to be one of .*bfloat16.*, got 'float8'"):
        load(saved)


def test_weights_of_another_dtype_than_config_json_says_are_refused(saved):
    edit(saved, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"to be torch\.bfloat16 .*got torch\.float32"):
        load(saved)


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_beside_it(saved):
    torch.manual_seed(7)
    model = VQVAE2(SMALL_VQVAE)
    save(model, saved)
    assert_equal(model, load(saved))
    assert os.listdir(saved.parent) == ["model"]


def test_saving_to_a_link_replaces_the_folder_that_it_leads_to(tmp_path):
    prior = small_priors()[0]
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/prior")
    for _ in range(2):
        save(prior, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["prior"]
    assert_equal(load(tmp_path / "link"), prior)


@pytest.mark.parametrize("leave", [0, 8 * 1024])
def test_a_full_disk_leaves_the_old_checkpoint(small_disk, leave):
    path = small_disk.folder / "model"
    save(VQVAE2(SMALL_VQVAE), path)
    old = load(path)
    small_disk.fill(leave)
    with pytest.raises(OSError, match="No space left|File too large"):
        save(VQVAE2(SMALL_VQVAE), path)
    small_disk.clear()
    assert os.listdir(small_disk.folder) == ["model"]
    assert_equal(old, load(path))


def test_a_save_cut_off_between_its_renames_is_told_on_load(saved):
    saved.rename(saved.with_name(".model.old"))
    with pytest.raises(FileNotFoundError, match=r"\.model\.old holds the checkpoint"):
        load(saved)


def test_only_checkpoints_are_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is not a checkpoint"):
        save(VQVAE2(SMALL_VQVAE), tmp_path / "precious")
    (tmp_path / "precious" / "config.json").write_text('{"model_type": "thesis"}')
    with pytest.raises(ValueError, match="exists and is not a checkpoint"):
        save(VQVAE2(SMALL_VQVAE), tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_what_lies_beside_a_checkpoint_is_not_deleted_with_it(tmp_path):
    save(VQVAE2(SMALL_VQVAE), tmp_path / "model")
    save(VQVAE2(SMALL_VQVAE), tmp_path / "model")
    (tmp_path / "model" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="also holds thesis.txt, so it was left unchanged"):
        save(VQVAE2(SMALL_VQVAE), tmp_path / "model")
    assert (tmp_path / "model" / "thesis.txt").read_text() == "years of work"


def test_other_objects_are_refused(tmp_path):
    with pytest.raises(
        TypeError, match="expected one of VQVAE2, PixelSNAIL, Classifier or Pipeline, got Linea"
    ):
        save(torch.nn.Linear(2, 2), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_newer_version_is_refused(saved):
    edit(saved, version=checkpoint.VERSION + 1)
    with pytest.raises(ValueError, match="has version 3; this package reads up to 2"):
        load(saved)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"embedding_dim": float("nan")}, "embedding_dim of VQVAE2Config to be int, got nan"),
        ({"depth": 3}, "has no field 'depth'"),
        ({"num_embeddings": True}, "num_embeddings of VQVAE2Config to be int, got True"),
        ({"strides": [3]}, "strides to be 1 to 4 powers of two"),
        ({"strides": ["a"]}, r"strides of VQVAE2Config to be tuple\[int, ...\], got \['a'\]"),
    ],
    ids=["nan", "unknown", "bool", "value", "inner"],
)
def test_a_configuration_that_does_not_fit_is_refused_by_field(saved, config, message):
    edit(saved, config=json.loads((saved / "config.json").read_text())["config"] | config)
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_missing_weights_are_named(saved):
    weights = load_file(saved / "model.safetensors")
    del weights["decoder.layers.0.bias"]
    save_file(weights, saved / "model.safetensors")
    (saved / "files.json").unlink()
    with pytest.raises(ValueError, match=r"missing: decoder\.layers\.0\.bias"):
        load(saved)


def test_weights_of_another_shape_are_named(saved):
    weights = load_file(saved / "model.safetensors")
    weights["decoder.layers.0.bias"] = torch.zeros(3)
    save_file(weights, saved / "model.safetensors")
    (saved / "files.json").unlink()
    with pytest.raises(ValueError, match=r"decoder\.layers\.0\.bias to be .*\[8\], got .*\[3\]"):
        load(saved)


def test_a_model_without_a_run_cannot_be_resumed(saved):
    with pytest.raises(ValueError, match=r"has no state\.json"):
        load_training(saved)


def test_another_class_than_the_expected_one_is_refused(saved):
    assert isinstance(load(saved, expect=VQVAE2), VQVAE2)
    with pytest.raises(ValueError, match="model: expected a pixelsnail, found a vqvae2"):
        load(saved, expect=PixelSNAIL)


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        save(VQVAE2(SMALL_VQVAE), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {0o640}


def test_loading_leaves_the_random_state_alone(saved):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_draws_no_weights_that_it_would_replace(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a random weight was drawn")

    for name in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    load(pretrained_folder("emoji32"))


def test_loading_does_not_import_the_compiler_of_torch():
    """It takes more than a second of each start of the command line, its symbolic shapes 0.4 s."""
    folder = str(pretrained_folder("emoji32"))
    script = f"import sys, vqvae2_fast; vqvae2_fast.load({folder!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        # Run outside the source tree, which would hide the installed package.
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"torch._dynamo", "sympy"} & set(done.stdout.split())
