"""What is no checkpoint: loading says what is there instead."""

from __future__ import annotations

import pytest

from vqvae2_fast import VQVAE2, preset
from vqvae2_fast.checkpoints.checkpoint import load, save


def test_a_folder_that_is_no_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load(tmp_path)


def test_a_path_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_a_code_store_is_no_checkpoint_and_called_by_its_name(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match="expected path to be the folder of a.* is a code store"
    ):
        load(tmp_path)


def test_a_folder_of_stores_or_of_runs_is_told_by_what_it_holds(tmp_path):
    (tmp_path / "codes" / "train").mkdir(parents=True)
    (tmp_path / "codes" / "train" / "manifest.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"codes holds code stores"):
        load(tmp_path / "codes")
    for name in ("prior_top", "vqvae"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"but holds some: prior_top, vqvae"):
        load(tmp_path / "runs")


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "vqvae_560.pt").write_bytes(b"\x80\x02")
    with pytest.raises(
        FileNotFoundError, match="expected path to be the folder of a checkpoint.* is a file"
    ):
        load(tmp_path / "vqvae_560.pt")


@pytest.mark.parametrize(("path", "found"), [(None, "None"), (3, "an int")])
def test_what_is_no_path_is_told(path, found):
    with pytest.raises(TypeError, match=f"^expected path to be .*, got {found}"):
        load(path)


def test_a_path_in_the_place_of_the_model_is_told(tmp_path):
    model = VQVAE2(preset("emoji32").vqvae)
    message = r"^expected path to be .*, got a VQVAE2. The order is save\(obj, path\)\.$"
    with pytest.raises(TypeError, match=message):
        save(tmp_path / "model", model)
