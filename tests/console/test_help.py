"""Tests of the help of commands: lines that fill the terminal, and no notation of the parser."""

from __future__ import annotations

import re

import pytest

from vqvae2_fast.cli import COMMANDS, main


@pytest.fixture
def help_of(capsys, monkeypatch):
    """The help of a command on a terminal of some width."""

    def printed(command: str, width: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert not stop.value.code
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_wider_than_the_terminal(command, help_of):
    assert max(map(len, help_of(command, 72).splitlines())) <= 72


@pytest.mark.parametrize("command", COMMANDS)
def test_paragraphs_above_the_options_are_one_empty_line_apart(command, help_of):
    assert "\n\n\n" not in help_of(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_neither_none_nor_an_empty_default_is_shown(command, help_of):
    words = re.sub(r"[\s│]+", " ", help_of(command))
    assert not re.findall(r"\{None\}|\(default: (?:None|''|\"\")?\)", words)


def test_lines_end_where_the_terminal_does_and_not_where_the_source_does(help_of):
    """`--resume` is explained in lines of source that are longer than those of the box."""
    lines = [line.strip(" │") for line in help_of("train-prior").splitlines()]
    first = next(n for n, line in enumerate(lines) if line.startswith("--resume"))
    explained = lines[first : first + 4]
    assert all(len(line) > 44 for line in explained[1:]), explained


def test_an_option_whose_default_depends_on_others_has_none_in_the_help(help_of):
    words = re.sub(r"[\s│]+", " ", help_of("train-prior"))
    assert "the number of codes of --codes. --level" in words


def test_other_defaults_are_shown(help_of):
    words = re.sub(r"[\s│]+", " ", help_of("train-prior"))
    assert "Folder that `vqvae2-fast extract` wrote. (default: runs/codes)" in words
