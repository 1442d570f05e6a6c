"""The architecture: the rooms of the package, and which of them may import which."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import vqvae2_fast
from vqvae2_fast.cli import COMMANDS

PACKAGE = Path(vqvae2_fast.__file__).parent
# From the ground floor up. A room imports rooms of lower floors and its own files; rooms on the
# same floor do not know each other.
FLOORS = (
    ("machine",),  # the processors and the memory that a process may use
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
    ("pipeline_training",),  # from images to a pipeline with its report, in a given time
    ("compat",),  # drop-ins for other packages
    ("commands",),  # the command line's commands
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ROOT = "vqvae2_fast"  # its public names come from every room


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _room(module: str) -> str:
    return module.split(".")[1]


def _source(module: str, name: str) -> str:
    """The module that `from module import name` reads."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    return PUBLIC.get(name, ROOT) if module == ROOT else module


# Where the names that the root exports come from, as type checkers see it.
PUBLIC: dict[str, str] = {}
for _block in ast.parse(MODULES[ROOT].read_text(encoding="utf-8")).body:
    if isinstance(_block, ast.If):
        PUBLIC |= {
            alias.name: _source(statement.module or "", alias.name)
            for statement in _block.body
            if isinstance(statement, ast.ImportFrom)
            for alias in statement.names
        }


def _imports(module: str, source: str | None = None, *, for_types: bool) -> set[str]:
    """Modules of the package that one of them imports anywhere, with or without those that only
    type checkers import.

    Args:
        source: What to read instead of the module's file.
    """
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source)
    # The package that a relative import counts from.
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    aliases = [a for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    roots = {ROOT} | {alias.asname for alias in aliases if alias.name == ROOT}
    names: set[str] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            names |= {_source(origin, alias.name) for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in roots:
            names.add(_source(ROOT, node.attr))
        nodes += ast.iter_child_nodes(node)
    return names & set(MODULES)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import vqvae2_fast.training.loop", "training.loop"),
        ("from vqvae2_fast.training import loop", "training.loop"),
        ("from vqvae2_fast.training.loop import train", "training.loop"),
        ("from vqvae2_fast.training import train", "training"),
        ("from vqvae2_fast import training", "training"),
        ("from vqvae2_fast import VQVAE2", "models.vqvae2"),
        ("import vqvae2_fast; vqvae2_fast.VQVAE2()", "models.vqvae2"),
        ("import vqvae2_fast; vqvae2_fast.training.loop.train()", "training"),
        ("import vqvae2_fast as vq2; vq2.VQVAE2()", "models.vqvae2"),
        ("from . import images", "data.images"),
        ("from .images import ImageSource", "data.images"),
        ("from .. import training", "training"),
        ("from .. import VQVAE2", "models.vqvae2"),
        ("from ..training import train", "training"),
        ("from ..training.loop import train", "training.loop"),
        ("def f():\n    from ..training import loop", "training.loop"),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: str) -> None:
    found = _imports(f"{ROOT}.data.folder", source, for_types=False)
    assert found - {ROOT} == {f"{ROOT}.{expected}"}


def test_relative_imports_of_a_package_count_from_itself() -> None:
    assert _imports(f"{ROOT}.data", "from .images import f", for_types=False) == {
        f"{ROOT}.data.images"
    }


def test_imports_for_types_are_seen_if_asked_for() -> None:
    source = "if TYPE_CHECKING:\n    from ..training import loop\nelse:\n    from ..runs import log"
    log, loop = f"{ROOT}.runs.log", f"{ROOT}.training.loop"
    assert _imports(f"{ROOT}.data.folder", source, for_types=False) == {log}
    assert _imports(f"{ROOT}.data.folder", source, for_types=True) == {log, loop}


def test_every_room_has_a_floor() -> None:
    assert {_room(module) for module in MODULES.keys() - {ROOT}} == FLOOR.keys()


@pytest.mark.parametrize("room", FLOOR)
def test_imports_go_down(room: str) -> None:
    higher = {
        f"{module} imports {name}"
        for module in MODULES.keys() - {ROOT}
        if _room(module) == room
        for name in _imports(module, for_types=True) - {ROOT}
        if (other := _room(name)) != room and FLOOR[other] >= FLOOR[room]
    }
    assert not higher


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: _imports(module, for_types=True) - {module} for module in MODULES}
    graph[ROOT] = set()  # it imports a name's home when the name is first used
    TopologicalSorter(graph).prepare()


def test_commands_do_not_import_one_another() -> None:
    commands = {f"{ROOT}.commands.{where.split(':')[0]}" for where, _ in COMMANDS.values()}
    for name in commands:
        others = _imports(name, for_types=True) & commands
        assert not others, f"{name} imports {others}"


def test_type_checkers_see_the_public_names() -> None:
    assert PUBLIC.keys() == set(vqvae2_fast.__all__)


@pytest.mark.parametrize("name", vqvae2_fast.__all__)
def test_every_public_name_is_found_where_type_checkers_see_it(name: str) -> None:
    found = getattr(vqvae2_fast, name)
    home = import_module(PUBLIC[name])
    assert found is (home if PUBLIC[name] == f"{ROOT}.{name}" else getattr(home, name))
