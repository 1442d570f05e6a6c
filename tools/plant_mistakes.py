"""Plants mistakes in a copy of `vqvae2_fast/`, one at a time, and counts those that tests catch.

For each it runs the quick tests that execute the changed line, those of the folder that mirrors the
file first, and at most a hundred. If they pass, it runs what `pytest --full` adds in that folder.
Triton's kernels have no mistakes here: only a GPU or an interpreter runs them.

    pip install coverage && python tools/plant_mistakes.py --mistakes 200 --seed 1
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import coverage

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
FULL = "full and not (inductor or pages or browser or nightly)"
TIERS = ("quick", "full", "no")
PAIRS = ["Lt LtE", "Gt GtE", "Eq NotEq", "Is IsNot", "In NotIn", "Add Sub", "Mult Div"]
OTHER = {
    getattr(ast, name): getattr(ast, other)
    for first, second in map(str.split, PAIRS)
    for name, other in ((first, second), (second, first))
}


def change_of(node: ast.AST) -> tuple[str, ast.AST] | None:
    """The kind of a mistake that this node can have, and the node with it."""
    match node:
        case ast.Compare(left, [operation], right):
            return "comparison", ast.Compare(left, [OTHER[type(operation)]()], right)
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            return "constant", ast.Constant(value + 1)
        case ast.BinOp(left, operation, right) if type(operation) in OTHER:
            return "sign", ast.BinOp(left, OTHER[type(operation)](), right)
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Raise():
            return "statement", ast.Pass()
    return None


def nodes(node: ast.AST, line: int = 1) -> list[tuple[int, ast.AST]]:
    """Where a mistake may be, after the line of its statement: not in types or texts of errors."""
    found = []
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") or isinstance(node, (ast.JoinedStr, ast.Raise)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                first = child.lineno if isinstance(child, ast.stmt) else line
                found += [(first, child), *nodes(child, first)]
    return found


@dataclass
class Mistake:
    kind: str
    file: str
    lines: range  # of the statement, up to the change
    words: str
    source: str  # of the whole file, with the mistake


def plant(kind: str, file: str, line: int, node: ast.AST, new: ast.AST) -> Mistake:
    source = (ROOT / file).read_bytes()
    lines = source.splitlines(keepends=True)
    first = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    last = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    text = f"({ast.unparse(new)})" if isinstance(new, ast.expr) else ast.unparse(new)
    words = " ".join(f"{source[first:last].decode()} -> {text}".split())
    changed = (source[:first] + text.encode() + source[last:]).decode()
    return Mistake(kind, file, range(line, node.end_lineno + 1), words, changed)


def mistakes(number: int, rng: random.Random) -> list[Mistake]:
    """As many of one kind as of another, each anywhere in the package."""
    found = defaultdict(list)
    for path in sorted((ROOT / "vqvae2_fast").rglob("*.py")):
        if "triton" in path.stem:
            continue
        for line, node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if change := change_of(node):
                kind, new = change
                found[kind].append((kind, path.relative_to(ROOT).as_posix(), line, node, new))
    each = [rng.sample(found[kind], -(-number // len(found))) for kind in sorted(found)]
    return [plant(*chosen) for chosen in chain(*zip(*each, strict=True))][:number]


def pytest_runtest_protocol(item: object) -> None:
    """For pytest, which loads this file as a plugin: notes which test runs a line."""
    coverage.Coverage.current().switch_context(item.nodeid)


class Copy:
    """A copy of the tree, and which quick tests run a line of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        skipped = shutil.ignore_patterns(".git", "build", "runs", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, folder, ignore=skipped, symlinks=True)
        path = f"{folder}:{folder / 'tools'}:{os.environ.get('PYTHONPATH', '')}"
        # Python would take a file that changes twice in a second for the same.
        self.environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        watched = ["-m", "coverage", "run", "--source=vqvae2_fast"]
        if not self.passes("-p", "plant_mistakes", before=watched):
            raise SystemExit("expected the quick tests to pass. Run pytest.")
        self.data = coverage.CoverageData(folder / ".coverage")
        self.data.read()

    def passes(self, *arguments: str, before: Sequence[str] = ()) -> bool:
        """Whether tests pass, or there are none."""
        command = ["timeout", "1800", sys.executable, *before, "-m", "pytest", "-qx", "-n0"]
        command += ["-p", "no:cacheprovider", *arguments]
        run = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True)
        return run.returncode in (0, 5)

    def tier(self, mistake: Mistake, rng: random.Random) -> str:
        """The tests that catch a mistake: "quick" or "full" ones, or "no" tests."""
        mirror = f"tests/{mistake.file.split('/')[1]}"
        mirror = mirror if (self.folder / mirror).is_dir() else "tests/test_cli.py"
        path = self.folder / mistake.file
        contexts = self.data.contexts_by_lineno(str(path))
        tests = {test for line in mistake.lines for test in contexts.get(line, [])}
        # What runs during an import is in no test's context.
        quick = [mirror] if tests == {""} else sorted(tests - {""})
        quick.sort(key=lambda test: (not test.startswith(mirror), rng.random()))
        before = path.read_text(encoding="utf-8")
        path.write_text(mistake.source, encoding="utf-8")
        try:
            # Named tests are quick ones already, and --quick would drop some of a part of them.
            if quick and not self.passes(
                "--quick" if quick == [mirror] else "--full", *quick[:100]
            ):
                return "quick"
            return "no" if self.passes("--full", "-m", FULL, mirror) else "full"
        finally:
            path.write_text(before, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mistakes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    caught: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder) / "copy")
        for mistake in mistakes(options.mistakes, rng):
            tier = copy.tier(mistake, rng)
            caught[tier] += 1
            print(f"{tier:5} {mistake.file}:{mistake.lines[-1]}: {mistake.words}", flush=True)
    print("mistakes caught by tests:", ", ".join(f"{tier}: {caught[tier]}" for tier in TIERS))


if __name__ == "__main__":
    main()
