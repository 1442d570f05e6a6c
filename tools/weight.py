"""Prints how heavy the project is: files, lines, errors, circles of imports, modules loaded, words.

`python tools/weight.py [FOLDER ...]` prints files, lines and errors of folders alone.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            lines.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def code_lines(source: str) -> int:
    """Lines of code: no blank ones, comments or docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(source)))


def python_weight(files: list[Path]) -> dict[str, int]:
    """Files, lines of code, `raise` statements, functions with a parameter `where` or `op`."""
    sources = [file.read_text(encoding="utf-8") for file in files]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    parameters = [
        {
            argument.arg
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        }
        for node in nodes
        if isinstance(node, FUNCTIONS)
    ]
    return {
        "files": len(files),
        "lines of code": sum(map(code_lines, sources)),
        "raise": sum(isinstance(node, ast.Raise) for node in nodes),
        "functions with `where` or `op`": sum(
            bool(names & {"where", "op"}) for names in parameters
        ),
    }


def imported(file: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports, but for types."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    name = next(name for name, path in modules.items() if path == file)
    parts = name.split(".")
    package = parts if file.name == "__init__.py" else parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                found.add(
                    f"{source}.{alias.name}" if f"{source}.{alias.name}" in modules else source
                )
    return found & modules.keys()


def largest_circle(package: Path) -> set[str]:
    """The most modules of which each imports every other, directly or by way of others."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(part for part in parts if part != "__init__")] = path
    edges = {name: imported(path, modules) for name, path in modules.items()}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in edges[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    reach = {name: reached(name) for name in modules}
    circles = ({other for other in reach[name] if name in reach[other]} for name in modules)
    return max(circles, key=len)


def loaded_modules(code: str) -> str:
    """How many modules of the package a program loads, and whether it loads torch."""
    count = (
        "import atexit, sys\n"
        "def tell():\n"
        "    own = sum(name.split('.')[0] == 'vqvae2_fast' for name in sys.modules)\n"
        "    torch = ' and torch' if 'torch' in sys.modules else ''\n"
        "    print(f'{own}{torch}', file=sys.stderr)\n"
        "atexit.register(tell)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", count + code]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return ended.stderr.strip().splitlines()[-1]


def lines_of(*patterns: str) -> int:
    files = {file for pattern in patterns for file in ROOT.glob(pattern)}
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def main() -> None:
    if folders := sys.argv[1:]:
        for folder in folders:
            print(folder, python_weight(sorted(Path(folder).rglob("*.py"))))
        return
    rows: dict[str, object] = {}
    for what, number in python_weight(sorted((ROOT / "vqvae2_fast").rglob("*.py"))).items():
        rows[f"vqvae2_fast: {what}"] = number
    rows["vqvae2_fast: modules in the largest circle"] = len(largest_circle(ROOT / "vqvae2_fast"))
    rows["modules loaded for VectorQuantizerEMA"] = loaded_modules(
        "from vqvae2_fast import VectorQuantizerEMA"
    )
    rows["modules loaded for --help"] = loaded_modules(
        "import runpy, sys\n"
        "sys.argv = ['vqvae2-fast', '--help']\n"
        "runpy.run_module('vqvae2_fast', run_name='__main__')"
    )
    rows["csrc: lines"] = lines_of("csrc/**/*.cpp", "csrc/**/*.h", "csrc/**/*.cu", "csrc/**/*.cuh")
    rows["tests: lines"] = lines_of("tests/**/*.py")
    rows["benchmarks, tools: lines"] = lines_of("benchmarks/**/*.py", "tools/**/*.py")
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    pages = [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    rows["Markdown: words"] = sum(
        len(re.findall(r"\S+", page.read_text(encoding="utf-8"))) for page in pages
    )
    for what, number in rows.items():
        print(f"{what:45} {number:>12}" if isinstance(number, str) else f"{what:45} {number:12,}")


if __name__ == "__main__":
    main()
