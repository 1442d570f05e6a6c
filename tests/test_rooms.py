"""The architecture: the rooms of the package, and which of them may import which."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vqvae2_fast
from vqvae2_fast_command import COMMANDS

PACKAGE = Path(vqvae2_fast.__file__).parent
# From the ground floor up. A room imports rooms of lower floors and its own files; rooms on the
# same floor do not know each other.
FLOORS = (
    ("files",),  # durable writes, JSON, opening untrusted files
    ("console",),  # what a terminal shows
    ("ops",),  # operators: tensors in, tensors out
    ("modules",),  # layers and quantisers
    ("models",),  # VQ-VAE-2, PixelSNAIL, classifier, their configurations
    ("data",),  # sources of images, code stores, sample folders
    ("sampling", "metrics"),  # draws from priors; measures of images and codes
    ("codec", "export"),  # images and code maps as the bits of the priors; other runtimes
    ("serve",),  # the playground and the HTTP service
    ("checkpoints",),  # models, pipelines and trainings on the disk
    ("runs",),  # folders, logs and processes of a run
    ("training", "report"),  # the loop, its stages and recipes; pictures and pages of results
    ("presets",),  # named models with their trainings
    ("compat", "testing"),  # drop-ins for other packages; helpers for tests of users
    ("commands",),  # the command line's commands
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {_module(path): path for path in PACKAGE.rglob("*.py")}


def _imports(path: Path, *, for_types: bool) -> set[str]:
    """Modules of the package that a file imports anywhere, with or without those that only type
    checkers import."""
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in found}
        nodes += ast.iter_child_nodes(node)
    return names & set(MODULES)


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0] for path in FILES} - {"pretrained"}
    assert rooms - set(FLOOR) == set()


@pytest.mark.parametrize("room", FLOOR)
def test_imports_go_down(room: str) -> None:
    higher = {
        f"{_module(path)} imports {name}"
        for path in FILES
        if path.relative_to(PACKAGE).parts[0] == room
        for name in _imports(path, for_types=True) - {"vqvae2_fast"}
        if (other := name.split(".")[1]) != room and FLOOR[other] >= FLOOR[room]
    }
    assert not higher


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: _imports(path, for_types=False) - {name} for name, path in MODULES.items()}
    graph["vqvae2_fast"] = set()  # its public names come from everywhere
    TopologicalSorter(graph).prepare()


def test_commands_do_not_import_one_another() -> None:
    commands = {f"vqvae2_fast.commands.{where.split(':')[0]}" for where, _ in COMMANDS.values()}
    for name in commands:
        others = _imports(MODULES[name], for_types=True) & commands
        assert not others, f"{name} imports {others}"
