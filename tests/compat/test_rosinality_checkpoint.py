"""Files of the port in every form, files that must be refused, and the errors for misfits."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vqvae2_fast.compat.rosinality import (
    VQVAE,
    PixelSNAIL,
    load_checkpoint,
    load_pixelsnail,
    load_vqvae,
)

SMALL = {"channel": 16, "n_res_block": 1, "n_res_channel": 8, "embed_dim": 8, "n_embed": 32}


def small_vqvae(seed: int = 0, **changes) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(**{**SMALL, **changes})


def small_prior(seed: int = 0, **changes) -> PixelSNAIL:
    torch.manual_seed(seed)
    keywords = {"n_cond_res_block": 1, "cond_res_channel": 8, "n_out_res_block": 1, **changes}
    return PixelSNAIL([6, 4], 10, 16, 3, 1, 2, 12, **keywords)


def equal(state: dict, other: dict) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


def new_weight_norm_keys(state: dict) -> dict:
    """The keys that torch.nn.utils.parametrizations.weight_norm would have given."""
    return {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in state.items()
    }


FORMS = {
    "bare": lambda state: state,
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "model_and_args": lambda state: {"model": state, "args": argparse.Namespace(hier="top")},
    "new_weight_norm": new_weight_norm_keys,
    "module_in_model": lambda state: {
        "model": {f"module.{key}": value for key, value in new_weight_norm_keys(state).items()},
        "args": argparse.Namespace(hier="top"),
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [small_vqvae, small_prior])
def test_every_form_of_file_loads_strictly(tmp_path, make, form):
    source, target = make(0), make(1)
    assert not equal(source.state_dict(), target.state_dict())
    torch.save(FORMS[form](source.state_dict()), tmp_path / "file.pt")
    checkpoint = load_checkpoint(tmp_path / "file.pt")
    target.load_state_dict(checkpoint.state_dict, strict=True)
    assert equal(source.state_dict(), target.state_dict())
    assert (checkpoint.args is not None) == ("model" in form)


@pytest.mark.parametrize("form", FORMS)
def test_load_state_dict_takes_what_torch_load_gives(form):
    """A user's page calls `model.load_state_dict(torch.load(path))` and nothing of ours."""
    source, target = small_prior(0), small_prior(1)
    target.load_state_dict(FORMS[form](source.state_dict()))
    assert equal(source.state_dict(), target.state_dict())


def test_a_layer_inside_a_wrapper_loads_new_weight_norm_keys():
    source, target = small_prior(0), small_prior(1)
    wrapped = nn.DataParallel(target)
    state = new_weight_norm_keys(source.state_dict())
    wrapped.load_state_dict({f"module.{key}": value for key, value in state.items()})
    assert equal(source.state_dict(), target.state_dict())


def test_tensors_of_a_safetensors_file_load(tmp_path):
    source, target = small_vqvae(0), small_vqvae(1)
    save_file(source.state_dict(), tmp_path / "vqvae.safetensors")
    target.load_state_dict(load_checkpoint(tmp_path / "vqvae.safetensors").state_dict)
    assert equal(source.state_dict(), target.state_dict())


def misfit(model, state) -> str:
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_other_width_is_named_with_the_call_that_fits():
    message = misfit(small_vqvae(), small_vqvae(channel=32).state_dict())
    assert "channel=32 (this model: 16)" in message
    assert (
        "It loads into VQVAE(in_channel=3, channel=32, n_res_block=1, n_res_channel=8, "
        "embed_dim=8, n_embed=32)" in message
    )
    assert "enc_b.blocks.0.weight [16, 3, 4, 4], expected [8, 3, 4, 4]" in message


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_codebooks_with_codes_as_rows_are_turned(levels):
    source, target = small_vqvae(0, n_level=levels), small_vqvae(1, n_level=levels)
    state = source.state_dict()
    for level in source.levels:
        for name in ("embed", "embed_avg"):
            state[f"quantize_{level}.{name}"] = state[f"quantize_{level}.{name}"].t()
    target.load_state_dict(state)
    assert equal(source.state_dict(), target.state_dict())


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_an_embedding_as_codebook_gives_the_same_images(levels):
    source, target = (small_vqvae(seed, n_level=levels).eval() for seed in (0, 1))
    state = source.state_dict()
    for level in source.levels:
        for name in ("embed_avg", "cluster_size"):
            del state[f"quantize_{level}.{name}"]
        table = state.pop(f"quantize_{level}.embed")
        state[f"quantize_{level}.embed.weight"] = table.t().contiguous()
    target.load_state_dict(state)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(source(images)[0], target(images)[0])


def test_a_prior_without_its_weight_norm_gives_the_same_logits():
    source, target = small_prior(0).eval(), small_prior(1).eval()
    codes, condition = torch.randint(10, (2, 6, 4)), torch.randint(10, (2, 3, 2))
    expected = source(codes, condition)[0]
    state = source.state_dict()
    for key in [key for key in state if key.endswith("weight_v")]:
        name = key.removesuffix("_v")
        state[name] = torch._weight_norm(state.pop(key), state.pop(f"{name}_g"), 0)
    zeros = next(key for key in state if key.endswith("conv2.conv.conv.weight"))
    state[zeros] = state[zeros].clone().index_fill(0, torch.tensor([0]), 0.0)
    target.load_state_dict(state)
    assert target.state_dict()[zeros + "_g"][0] == 0
    source.state_dict()[zeros + "_g"][0] = 0
    expected = source(codes, condition)[0]
    assert expected.isfinite().all()
    assert torch.allclose(target(codes, condition)[0], expected, rtol=0, atol=1e-6)


WRAPPERS = {
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
    "any_name": lambda state: {"vqvae": state, "optimizer": {"state": {}, "param_groups": []}},
    "two_models": lambda state: {"ema": {"w": torch.ones(1)}, "model": state},
    "model.": lambda state: {f"model.{key}": value for key, value in state.items()},
    "vqvae.": lambda state: {f"vqvae.{key}": value for key, value in state.items()},
    "lightning": lambda state: {
        "state_dict": {"loss.scale": torch.ones(1)}
        | {f"net.module.{key}": value for key, value in state.items()}
    },
}


@pytest.mark.parametrize("form", WRAPPERS)
@pytest.mark.parametrize("make", [small_vqvae, small_prior])
def test_a_wrapped_state_dict_is_found(tmp_path, make, form):
    source, target = make(0), make(1)
    torch.save(WRAPPERS[form](source.state_dict()), tmp_path / "file.pt")
    target.load_state_dict(load_checkpoint(tmp_path / "file.pt").state_dict)
    assert equal(source.state_dict(), target.state_dict())


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            lambda s: {"first": s, "second": s},
            "under first, second; keep the one you mean",
        ),
        (lambda s: {f"{p}.{k}": s[k] for p in "ab" for k in s}, "with the prefixes a., b."),
        (lambda s: [s], "found a list"),
        (lambda s: {}, "found a dict without entries"),
    ],
    ids=["names", "prefixes", "list", "empty"],
)
def test_a_file_of_several_models_or_of_none_is_refused(tmp_path, form, message):
    torch.save(form(small_vqvae().state_dict()), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(tmp_path / "file.pt")
    assert str(tmp_path / "file.pt") in str(caught.value)


@pytest.mark.parametrize("as_dict", [True, False])
def test_paths_and_numpy_numbers_in_args_are_read(tmp_path, as_dict):
    values = {"path": Path("/data/x"), "lr": np.float64(3e-4), "n": np.int64(-5), "f": np.bool_(1)}
    args = values if as_dict else argparse.Namespace(**values)
    torch.save({"model": small_vqvae().state_dict(), "args": args}, tmp_path / "file.pt")
    found = vars(load_checkpoint(tmp_path / "file.pt").args)
    assert found == {"path": "/data/x", "lr": 3e-4, "n": -5, "f": True}
    assert [type(value) for value in found.values()] == [str, float, int, bool]


@pytest.mark.parametrize("value", [np.ones(2), np.array(["x"]), np.datetime64("2020-01-01")])
def test_other_numpy_values_are_refused(tmp_path, value):
    torch.save({"model": small_vqvae().state_dict(), "args": {"x": value}}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"file\.pt is (refused|damaged)"):
        load_checkpoint(tmp_path / "file.pt")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    state = small_prior().state_dict()
    state["background"] = torch.zeros(1, 1, 1, 1).expand(1, 2, 2**20, 2**20)
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="background has fewer values than its shape says"):
        load_pixelsnail(tmp_path / "file.pt")


def test_weights_that_are_not_finite_are_refused_unless_asked_for(tmp_path):
    state = small_vqvae().state_dict()
    state["dec.blocks.0.bias"][0] = float("nan")
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"file\.pt: expected finite .* in dec\.blocks\.0\.bias"):
        load_vqvae(tmp_path / "file.pt", rectified_skip=False)
    load_checkpoint(tmp_path / "file.pt", check_finite=False)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_other_numbers_than_floats_are_refused(dtype):
    state = small_vqvae().state_dict()
    state["upsample_t.bias"] = state["upsample_t.bias"].to(dtype)
    message = misfit(small_vqvae(), state)
    assert f"1 other dtypes: upsample_t.bias {str(dtype)[6:]}, expected float32" in message


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("quantizer._codebook.embed", "vector-quantize-pytorch"),
        ("quantizers.0.codebook", "a native VQVAE2 of vqvae2_fast"),
        ("quantize.embedding.weight", "taming-transformers"),
        ("who.knows", "another package: none of its keys"),
        ("dec.blocks.0.bias", "a part of a VQVAE, or a changed one: it has 1 of 48 keys"),
    ],
)
def test_keys_of_another_package_name_it(key, source):
    assert f"Likely source: {source}" in misfit(small_vqvae(), {key: torch.zeros(1)})


def test_not_strict_loads_what_there_is():
    source, target = small_vqvae(0), small_vqvae(1)
    state = source.state_dict()
    del state["upsample_t.bias"]
    result = target.load_state_dict(state, strict=False)
    assert result.missing_keys == ["upsample_t.bias"]
    assert torch.equal(target.upsample_t.weight, source.upsample_t.weight)


@pytest.mark.parametrize("levels", [1, 3])
def test_a_file_of_other_levels_is_named_and_loads_by_itself(tmp_path, levels):
    source = small_vqvae(n_level=levels)
    torch.save({"model": source.state_dict()}, tmp_path / "vqvae.pt")
    loaded = load_vqvae(tmp_path / "vqvae.pt", rectified_skip=True)
    assert len(loaded.levels) == levels
    assert equal(loaded.state_dict(), source.state_dict())
    assert f"made with n_level={levels}" in misfit(small_vqvae(), source.state_dict())


def test_arguments_are_read_off_the_shapes():
    prior = small_prior(n_cond_res_block=2, cond_res_kernel=5)
    assert PixelSNAIL.arguments_of(prior.state_dict()) == {
        "shape": [6, 4],
        "n_class": 10,
        "channel": 16,
        "kernel_size": 3,
        "n_block": 1,
        "n_res_block": 2,
        "res_channel": 12,
        "attention": True,
        "n_cond_res_block": 2,
        "cond_res_channel": 8,
        "cond_res_kernel": 5,
        "n_out_res_block": 1,
    }
    assert VQVAE.arguments_of(small_vqvae().state_dict()) == {"in_channel": 3, **SMALL}
