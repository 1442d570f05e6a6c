"""Checkpoints of pipelines: names of classes, recommended settings, parts that belong together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.checkpoints import assert_equal, edit, small_priors
from helpers.models import SMALL_TOP, SMALL_VQVAE, tiny_pipeline, tiny_prior

from vqvae2_fast.checkpoints.checkpoint import class_names, load, save
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling.pipeline import Pipeline


def test_a_pipeline_comes_back_whole_with_the_names_of_its_classes(tmp_path):
    pipeline = Pipeline(VQVAE2(SMALL_VQVAE), small_priors())
    save(pipeline, tmp_path / "pipeline", class_names=("cat", "dog"))
    loaded = load(tmp_path / "pipeline")
    assert_equal(pipeline.vqvae, loaded.vqvae)
    for prior, other in zip(pipeline.priors, loaded.priors, strict=True):
        assert_equal(prior, other)
    assert class_names(tmp_path / "pipeline") == loaded.class_names == ("cat", "dog")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_pipeline_is_float32_whatever_torchs_default_is(tmp_path, dtype):
    pipeline = tiny_pipeline()
    save(pipeline, tmp_path)
    torch.set_default_dtype(dtype)
    try:
        loaded = load(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    for model, other in zip(
        (pipeline.vqvae, *pipeline.priors), (loaded.vqvae, *loaded.priors), strict=True
    ):
        assert_equal(model, other)


def test_a_loaded_pipeline_is_saved_with_all_it_had(tmp_path):
    recommended = {"temperature": [0.9, 0.8], "top_k": 5}
    save(
        Pipeline(VQVAE2(SMALL_VQVAE), small_priors(), ("cat", "dog"), recommended),
        tmp_path / "first",
    )
    save(load(tmp_path / "first"), tmp_path / "second")
    loaded = load(tmp_path / "second")
    assert loaded.class_names == ("cat", "dog")
    assert loaded.recommended == recommended


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("recommended", [1], "recommended to be an object"),
        ("recommended", {"temperature": "hot"}, "temperature to be a number, got 'hot'"),
        ("recommended", {"engine": "reference"}, "recommended to name some of"),
        ("recommended_for", [1], "recommended_for to be a list of hashes"),
    ],
)
def test_recommended_settings_of_a_file_are_checked(tmp_path, field, value, message):
    save(Pipeline(VQVAE2(SMALL_VQVAE), small_priors()), tmp_path)
    edit(tmp_path, **{field: value})
    with pytest.raises(ValueError, match=f"{tmp_path}: .*{message}"):
        load(tmp_path)


def test_the_words_of_priors_are_kept(tmp_path):
    words = ("glasses=any", "glasses=none")
    save(tiny_pipeline(words=words), tmp_path)
    loaded = load(tmp_path, expect=Pipeline)
    assert loaded.word_names == words
    assert [prior.word_names for prior in loaded.priors] == [words, words]


def test_a_prior_of_before_words_has_none(tmp_path):
    prior = tiny_prior(num_classes=2)
    save(prior, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["config"]
    del config["num_words"]
    edit(tmp_path, config=config)
    loaded = load(tmp_path, expect=PixelSNAIL)
    assert (loaded.config.num_words, loaded.word_names) == (0, ())


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", 2], "ab"], ids=str)
def test_names_that_are_not_those_of_the_words_are_refused(tmp_path, names):
    save(tiny_prior(num_classes=2, num_words=2), tmp_path)
    edit(tmp_path, word_names=names)
    with pytest.raises(ValueError, match="expected word_names to be"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["vqvae", "prior_top"])
def test_settings_tuned_for_other_weights_are_refused(tmp_path, part):
    recommended = {"temperature": 0.9}
    for name in ("tuned", "others"):
        pipeline = Pipeline(VQVAE2(SMALL_VQVAE), small_priors(), recommended=recommended)
        for model in (pipeline.vqvae, *pipeline.priors):
            torch.nn.init.constant_(next(model.parameters()), len(name))
        save(pipeline, tmp_path / name, dtype=torch.bfloat16)
        for folder in (tmp_path / name).glob("prior_*"):  # priors of no known VQ-VAE
            edit(folder, vqvae_hash="")
    assert load(tmp_path / "tuned").recommended == recommended
    shutil.rmtree(tmp_path / "tuned" / part)
    shutil.copytree(tmp_path / "others" / part, tmp_path / "tuned" / part)
    with pytest.raises(ValueError, match=r"tuned: its recommended settings were tuned for other"):
        load(tmp_path / "tuned")


def test_recommended_settings_belong_to_the_weights_that_int8_leaves(tmp_path):
    pipeline = Pipeline(VQVAE2(SMALL_VQVAE), small_priors(), recommended={"temperature": 0.9})
    save(pipeline, tmp_path / "small", dtype=torch.int8)
    assert load(tmp_path / "small", expect=Pipeline).recommended == {"temperature": 0.9}


def test_a_level_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    save(Pipeline(VQVAE2(SMALL_VQVAE), small_priors()), tmp_path / "pipeline")
    edit(tmp_path / "pipeline", config={"levels": ["/../../elsewhere"]})
    with pytest.raises(ValueError, match=r"names of levels, .*got \['/../../elsewhere'\]"):
        load(tmp_path / "pipeline")


def test_a_prior_in_the_place_of_a_pipelines_vqvae_is_refused_by_kind(tmp_path):
    save(Pipeline(VQVAE2(SMALL_VQVAE), small_priors()), tmp_path / "pipeline")
    save(small_priors()[0], tmp_path / "pipeline" / "vqvae")
    with pytest.raises(ValueError, match="expected a vqvae2, found a pixelsnail"):
        load(tmp_path / "pipeline")


def test_a_prior_for_another_number_of_codes_is_refused_with_both(tmp_path):
    save(Pipeline(VQVAE2(SMALL_VQVAE), small_priors()), tmp_path / "pipeline")
    save(VQVAE2(replace(SMALL_VQVAE, num_embeddings=9)), tmp_path / "pipeline" / "vqvae")
    with pytest.raises(
        ValueError, match=r"prior_top to be .*num_embeddings 9 and .*got .*num_embeddings 8"
    ):
        load(tmp_path / "pipeline")


def test_a_prior_keeps_which_vqvae_it_was_trained_for(tmp_path):
    prior = small_priors()[0]
    prior.vqvae_hash = "0f"
    save(prior, tmp_path / "prior")
    assert load(tmp_path / "prior", expect=PixelSNAIL).vqvae_hash == "0f"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prior_of_another_vqvae_does_not_get_into_a_pipeline(tmp_path, dtype):
    vqvae, other = VQVAE2(SMALL_VQVAE), VQVAE2(SMALL_VQVAE)
    for name, model in (("first", vqvae), ("second", other)):
        save(Pipeline(model, small_priors()), tmp_path / name, dtype=dtype)
        load(tmp_path / name)
    shutil.rmtree(tmp_path / "first" / "prior_bottom")
    shutil.copytree(tmp_path / "second" / "prior_bottom", tmp_path / "first" / "prior_bottom")
    with pytest.raises(ValueError, match=r"but .*first/prior_bottom was trained on codes of VQ"):
        load(tmp_path / "first")
    second = load(tmp_path / "second", expect=Pipeline)
    mixed = Pipeline(vqvae, second.priors)
    with pytest.raises(ValueError, match=r".* but prior_top was trained on codes of VQ-VAE"):
        save(mixed, tmp_path / "third")
    assert not (tmp_path / "third").exists()
    second.vqvae.bfloat16()
    save(second, tmp_path / "third")  # rounded weights have another hash, so nothing is known
    load(tmp_path / "third")


def test_a_pipeline_without_hashes_loads_as_before(tmp_path):
    save(Pipeline(VQVAE2(SMALL_VQVAE), small_priors()), tmp_path / "pipeline")
    for name in ("prior_top", "prior_bottom"):
        header = json.loads((tmp_path / "pipeline" / name / "config.json").read_text())
        del header["vqvae_hash"]
        (tmp_path / "pipeline" / name / "config.json").write_text(json.dumps(header))
        (tmp_path / "pipeline" / name / "files.json").unlink()
    assert load(tmp_path / "pipeline", expect=Pipeline).priors[0].vqvae_hash == ""


def test_class_names_of_priors_reach_the_pipeline_made_of_them(tmp_path):
    made = tiny_pipeline(2)
    save(made.vqvae, tmp_path / "vqvae")
    for level, prior in zip(("top", "bottom"), made.priors, strict=True):
        save(prior, tmp_path / level, class_names=("cat", "dog"))
    priors = [load(tmp_path / level, expect=Prior) for level in ("top", "bottom")]
    save(Pipeline(load(tmp_path / "vqvae", expect=VQVAE2), priors), tmp_path / "pipeline")
    assert load(tmp_path / "pipeline", expect=Pipeline).class_names == ("cat", "dog")


def test_the_priors_in_a_pipeline_have_its_class_names(tmp_path):
    save(tiny_pipeline(2), tmp_path / "named", class_names=("cat", "dog"))
    assert load(tmp_path / "named" / "prior_top").class_names == ("cat", "dog")
    save(tiny_pipeline(0), tmp_path / "plain")
    assert load(tmp_path / "plain" / "prior_top").class_names == ()


def test_a_loaded_prior_is_saved_with_its_class_names(tmp_path):
    save(tiny_pipeline(2).priors[0], tmp_path / "first", class_names=("cat", "dog"))
    save(load(tmp_path / "first"), tmp_path / "second")
    assert class_names(tmp_path / "second") == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat"], "expected class_names to name each of the 2 classes, got 1 names"),
        (["cat", "d" * 500_000], "at most 1024 are supported"),
        (["cat", "\ud800"], "the name of class 1 is not Unicode text"),
        (["cat", 3], "expected class_names to be a list of names"),
        ("ab", "expected class_names to be a list of names"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path, names, message):
    prior = PixelSNAIL(replace(SMALL_TOP, num_classes=2))
    save(prior, tmp_path / "prior", class_names=["cat", "dog"])
    assert class_names(tmp_path / "prior") == ("cat", "dog")
    with pytest.raises(ValueError, match="expected class_names to name each of the 2"):
        save(prior, tmp_path / "prior", class_names=["cat"])
    edit(tmp_path / "prior", class_names=names)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "prior")
    assert str(tmp_path / "prior") in str(caught.value)
    assert len(str(caught.value)) < 500
