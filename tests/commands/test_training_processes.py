"""Training commands in two processes, as torchrun starts them."""

from __future__ import annotations

import json
import socket

import pytest

TINY = [
    *("--model.image-size", "8", "8", "--model.strides", "2", "2"),
    *("--model.hidden-channels", "8", "--model.residual-channels", "4"),
    *("--model.num-residual-blocks", "1", "--model.num-embeddings", "8"),
    *("--model.embedding-dim", "4", "--train.batch-size", "3", "--train.log-every", "1"),
]


@pytest.fixture
def arguments(images, tmp_path):
    return ["train-vqvae", "--data", str(images), "--out", str(tmp_path / "run"), "--quiet", *TINY]


def test_two_processes_leave_one_run_which_one_continues(
    run_in_two_processes, run, arguments, tmp_path
):
    said = run_in_two_processes(*arguments, "--train.steps", "2")
    assert "held out" in said[0]
    assert said[1] == ""
    more = [*arguments, "--resume", "--train.steps", "3"]
    code, _, error = run(*more)
    assert code == 2
    assert "batch of 6; one process takes batch_size=3" in error
    assert "Set accumulate=2, or global_batch=6" in error
    assert run(*more, "--train.accumulate", "2")[0] == 0
    lines = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]


def test_a_process_that_never_comes_ends_the_wait_with_the_timeout_named(
    run, arguments, monkeypatch
):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    code, _, error = run(*arguments, "--timeout", "0.5")
    assert code == 1
    assert "process 0 of 2 lost another one" in error
    assert "within timeout=0.5 seconds" in error
    assert "Continue the run with resume" in error


def test_processes_share_the_batch_of_a_classifiers_recipe(run_in_two_processes, images, tmp_path):
    out = tmp_path / "run"
    options = ["--data", str(images), "--image-size", "8", "8", "--steps", "1", "--out", str(out)]
    said = run_in_two_processes("train-classifier", *options, "--quiet")
    assert "held out" in said[0]
    state = json.loads((out / "checkpoints/step-000000001/state.json").read_text())
    assert state["global_batch"] == 18  # all images
