"""benchmarks/ holds commands, and in `shared/` what they import; its README.md lists both."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SUITE = "test_operators.py"  # a command of pytest
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if path.name != SUITE]
MODULES = [path for path in sorted((FOLDER / "shared").glob("*.py")) if path.stem != "__init__"]


def is_command(path):
    return 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")


def test_commands_and_modules_are_apart():
    assert all(map(is_command, SCRIPTS))
    assert not any(map(is_command, MODULES))


def test_the_page_names_every_file():
    assert [path.name for path in (*SCRIPTS, *MODULES) if f"`{path.name}" not in README] == []
