"""The recipes of the pretrained pipelines: commands that exist, with options that exist."""

from __future__ import annotations

import runpy
from pathlib import Path

from vqvae2_fast import cli
from vqvae2_fast.presets import preset_names

TOOL = Path(__file__).parents[2] / "tools" / "train_pretrained.py"


def test_commands_of_all_recipes_are_understood(tmp_path):
    recipes = runpy.run_path(str(TOOL))["RECIPES"]
    assert set(recipes) <= set(preset_names())
    for name, recipe in recipes.items():
        commands = recipe.commands(name, recipe.data, tmp_path)
        assert list(commands)[:4] == ["vqvae", "codes", "prior_top", "prior_bottom"]
        for command in commands.values():
            kind = cli._kind(command[0])
            assert cli._parse(kind, command[0], [*command[1:], "--resume"]).resume
