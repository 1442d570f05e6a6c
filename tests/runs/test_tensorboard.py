"""What TensorBoard is given of a run."""

from __future__ import annotations

import sys

import pytest

from vqvae2_fast.runs.tensorboard import tensorboard_log


def points(run) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each tag, as TensorBoard itself reads them."""
    package = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = package.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_figures_of_training_and_of_held_out_images_stand_apart(tmp_path):
    pytest.importorskip("tensorboard", reason="needs vqvae2_fast[tensorboard]")
    with tensorboard_log(tmp_path) as log:
        log(2, {"loss": 0.5})
        log(4, {"loss": 0.25})
        log(4, {"val_psnr": 20.0})
    assert points(tmp_path) == {
        "train/loss": [(2, 0.5), (4, 0.25)],
        "held_out/psnr": [(4, 20.0)],
    }


def test_a_part_that_was_broken_off_is_taken_back(tmp_path):
    pytest.importorskip("tensorboard", reason="needs vqvae2_fast[tensorboard]")
    for steps, value in (((2, 4, 6), 1.0), ((4, 6), 2.0)):  # the checkpoint was of step 2 or 3
        with tensorboard_log(tmp_path) as log:
            for step in steps:
                log(step, {"loss": value})
    assert points(tmp_path)["train/loss"] == [(2, 1.0), (4, 2.0), (6, 2.0)]


def test_without_a_run_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tensorboard_log(None) as log:
        log(1, {"loss": 0.5})
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    sys.path_importer_cache.clear()
    with (
        pytest.raises(RuntimeError, match=r"pip install 'vqvae2_fast\[tensorboard\]'"),
        tensorboard_log(tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir())
