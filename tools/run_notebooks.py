"""Runs the notebooks in examples/ from top to bottom and keeps their outputs, with small pictures.

    pip install nbclient ipykernel
    python tools/run_notebooks.py [NAME ...]

Each runs in an empty folder. Needs minutes: these are the whole trainings.
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

if TYPE_CHECKING:
    from nbformat import NotebookNode

EXAMPLES = Path(__file__).parents[1] / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="such as your_own_images; all by default")
    names = parser.parse_args().names
    paths = {path.stem: path for path in sorted(EXAMPLES.glob("*.ipynb"))}
    if unknown := sorted(set(names) - paths.keys()):
        parser.error(f"expected notebooks of {', '.join(paths)}, got {', '.join(unknown)}")
    for path in [paths[name] for name in names or paths]:
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        run(notebook)
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                shrink(output.get("data", {}))
        nbformat.write(notebook, path)
        kilobytes = path.stat().st_size / 1000
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {kilobytes:.0f} kB")


def run(notebook: NotebookNode) -> None:
    """Execute all cells, as the kernel of this environment."""
    # Names and versions of the machine that ran it say nothing to a reader.
    notebook.metadata["language_info"] = {"name": "python"}
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=None,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    notebook.metadata["language_info"] = {"name": "python"}


def shrink(data: dict[str, Any]) -> None:
    """One picture of 256 colours, where Pillow gives a large PNG and a JPEG; no long text behind
    a table."""
    if "text/html" in data:
        data["text/plain"] = data["text/plain"].partition("(")[0]
    if "image/jpeg" not in data:
        return
    del data["image/jpeg"]
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        small = picture.quantize(256, dither=Image.Dither.NONE)
    png = io.BytesIO()
    small.save(png, format="PNG", optimize=True)
    data["image/png"] = base64.b64encode(png.getvalue()).decode()


if __name__ == "__main__":
    main()
