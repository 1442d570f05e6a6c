"""Commands whose work several processes do not share, as torchrun would start them."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "tune",
        "compress photos",
        "decompress images.vq2",
        "calibrate",
        "export model",
    ],
)
def test_a_command_that_is_not_shared_refuses_several_processes(
    run, tmp_path, monkeypatch, command
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.chdir(tmp_path)
    code, _, error = run(command)
    assert code == 2
    assert "expected one process, got WORLD_SIZE=2" in error
    assert "without torchrun" in error
    assert not list(tmp_path.iterdir())
