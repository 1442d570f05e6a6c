"""The recipes of the pretrained pipelines: commands that exist, with options that exist, and parts
that they made."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vqvae2_fast import cli
from vqvae2_fast.presets import preset_names

TOOLS = Path(__file__).parents[2] / "tools"
PARTS = ["vqvae", "codes", "prior_top", "prior_bottom"]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("train_pretrained")


@pytest.fixture
def make(tool, monkeypatch, tmp_path):
    """Makes the parts of emoji32 in tmp_path / "runs" by commands that only leave a result, with
    changes of the recipe; returns those that ran."""

    def make(data="emoji", runs=tmp_path / "runs", **changes):
        ran = []

        def run(command):
            out = Path(command[command.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            (out / "result.json").write_text("{}")
            ran.append(out.name)

        monkeypatch.setattr(tool, "vqvae2_fast", run)
        recipe = replace(tool.RECIPES["emoji32"], **{"decoder": None, **changes})
        tool.make_parts(recipe, "emoji32", data, runs)
        return ran

    return make


def test_commands_of_all_recipes_are_understood(tool, tmp_path):
    assert set(tool.RECIPES) <= set(preset_names())
    for name, recipe in tool.RECIPES.items():
        commands = recipe.commands(name, recipe.data, tmp_path)
        assert list(commands)[:4] == PARTS
        for command in commands.values():
            kind = cli._kind(command[0])
            assert cli._parse(kind, command[0], [*command[1:], "--resume"]).resume


def test_finished_parts_are_not_made_again(make, tmp_path):
    assert make() == PARTS
    shutil.rmtree(tmp_path / "runs" / "prior_top")
    assert make() == ["prior_top"]


def test_parts_of_other_images_are_refused(make, tmp_path):
    make()
    with pytest.raises(SystemExit, match=f"--data photos: {tmp_path / 'runs' / 'vqvae'}, .*Delete"):
        make(data="photos")


def test_a_part_of_other_options_is_refused_with_those_made_from_it(make, tmp_path):
    make()
    with pytest.raises(SystemExit) as error:
        make(extract="--flip --copies 2")
    folders = ", ".join(str(tmp_path / "runs" / part) for part in PARTS[1:])
    assert f"--data emoji: {folders}. " in str(error.value)
