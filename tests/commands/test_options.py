"""The options of a command, as they are known before its line is parsed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import vqvae2_fast
from vqvae2_fast.cli import COMMANDS, _kind, main
from vqvae2_fast.commands.options import options_of, value_of


def test_messages_of_the_library_name_no_flags():
    """Outside of whole commands, in backticks: a caller of Python has arguments only."""
    package = Path(vqvae2_fast.__file__).parent
    found = [
        f"{path.relative_to(package)}:{node.lineno}: {node.value}"
        for path in package.rglob("*.py")
        if path.parent.name != "commands" and path.name != "cli.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.search(r"(^|[\s(])--[a-z]", re.sub(r"`[^`]*(`|$)", "", node.value))
    ]
    assert not found


def test_the_last_of_an_option_that_is_given_twice_counts():
    arguments = ["--level", "top", "--level=middle", "--level", "bottom", "--out", "x"]
    assert value_of("--level", arguments, "top") == "bottom"
    assert value_of("--preset", arguments, "emoji32") == "emoji32"


@pytest.mark.parametrize(("name", "command"), [(name, _kind(name)) for name in COMMANDS])
def test_the_options_are_those_of_the_help(name, command, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    lines = re.findall(r"^[│| ]{1,4}(?:-h, )?(--\S.*)", text, re.MULTILINE)
    shown = {word for line in lines for word in re.findall(r"--[a-z][\w.-]*", line.split("  ")[0])}
    expected = {"--help", *options_of(command)}
    if name == "train-prior":  # whose prior may have another configuration than that of the help
        assert shown <= expected
    else:
        assert shown == expected
