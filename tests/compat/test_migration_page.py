"""The code and the commands of docs/migrating-from-rosinality.md, run and parsed."""

from __future__ import annotations

import argparse
import pickle
import re
import shlex
import sys
import types
from collections import namedtuple
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch

from vqvae2_fast import cli
from vqvae2_fast.compat.rosinality import VQVAE, PixelSNAIL
from vqvae2_fast.data import CodeStore
from vqvae2_fast.training.config import learning_rate

PAGE = (Path(__file__).parents[2] / "docs" / "migrating-from-rosinality.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```sh\nvqvae2-fast (.*?)\n```", PAGE.replace("\\\n", " "), re.DOTALL)


def write_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files of the port under the names that the page uses."""
    torch.manual_seed(0)
    Path("checkpoint").mkdir()
    torch.save(VQVAE(rectified_skip=True).state_dict(), "checkpoint/vqvae_560.pt")
    args = argparse.Namespace(dropout=0.1)
    top = PixelSNAIL([2, 3], 512, 16, 3, 1, 1, 8)
    torch.save({"model": top.state_dict(), "args": args}, "checkpoint/pixelsnail_top_420.pt")
    bottom = PixelSNAIL(
        [4, 6], 512, 16, 3, 1, 1, 8, attention=False, n_cond_res_block=1, cond_res_channel=8
    )
    torch.save({"model": bottom.state_dict(), "args": args}, "checkpoint/pixelsnail_bottom_420.pt")

    module = types.ModuleType("dataset")
    module.CodeRow = namedtuple("CodeRow", ["top", "bottom", "filename"], module="dataset")
    monkeypatch.setitem(sys.modules, "dataset", module)
    row = module.CodeRow(np.ones((2, 3), int), np.ones((4, 6), int), "cat/1.png")
    with lmdb.open("codes_lmdb", map_size=1 << 20) as env, env.begin(write=True) as transaction:
        transaction.put(b"0", pickle.dumps(row))
        transaction.put(b"length", b"1")


def parsed(command: str):
    name, *arguments = shlex.split(command)
    return cli._parse(cli._kind(name), name, arguments)


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(monkeypatch)
    scope: dict = {}
    drawn = []
    for block in PYTHON:
        # The page's image size is that of the port's default maps.
        exec(block.replace("(256, 256)", "(16, 24)"), scope)
        drawn.append(scope.get("images"))
    _, by_port, by_native, _ = drawn
    assert by_port.shape == (8, 3, 16, 24)
    assert torch.allclose(by_native, by_port, rtol=0, atol=1e-5)
    before, after = scope["vqvae"].state_dict(), scope["again"].state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert len(CodeStore("runs/codes/train")) == 1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_the_commands_of_the_page_have_these_options(command):
    parsed(command)


@pytest.mark.parametrize("name", ["train-vqvae", "train-prior"])
def test_the_training_commands_train_as_the_port_does(name):
    config = parsed(next(command for command in COMMANDS if command.startswith(name))).train
    assert config.batch_size * config.accumulate == {"train-vqvae": 128, "train-prior": 32}[name]
    assert {learning_rate(step, config) for step in (0, 1, config.steps - 1)} == {3e-4}
    assert config.max_grad_norm == config.average_decay == config.weight_decay == 0


def test_every_option_in_the_tables_exists(capsys):
    known = ""
    for name in ("train-vqvae", "extract", "train-prior", "sample"):
        with pytest.raises(SystemExit):
            parsed(f"{name} --help")
        known += capsys.readouterr().out
    columns = [line.split("|")[2] for line in PAGE.splitlines() if line.startswith("| ")]
    options = {option for column in columns for option in re.findall(r"--[a-z][a-z.-]*", column)}
    assert len(options) > 20
    assert [option for option in sorted(options) if option not in known] == []
