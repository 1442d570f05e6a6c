"""The example notebooks: every cell runs in a kernel, and what is committed with them is small.

The cell with the tag "parameters" is replaced, so that trainings take a few steps. After a change
to a notebook `python tools/run_notebooks.py` makes its outputs again.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vqvae2_fast import cli, preset

nbformat = pytest.importorskip("nbformat", reason="nbclient and ipykernel run notebooks")
nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel run notebooks")
pytest.importorskip("ipykernel", reason="nbclient and ipykernel run notebooks")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SHORT = {
    "your_own_images": {"FOLDER": "images", "SHARE": 0.002},
    "quantizer_in_your_model": {"STEPS": 5, "BACKEND": "eager"},
}


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, kind: str) -> list[str]:
    """What cells show of a MIME type, or wrote to the stream of that name."""
    every = [output for cell in code_cells(notebook) for output in cell.outputs]
    shown = [output.data[kind] for output in every if kind in output.get("data", ())]
    return shown + [output.text for output in every if output.get("name") == kind]


def run(notebook, folder: Path) -> None:
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()


@pytest.fixture
def executed(request, tmp_path):
    """A notebook after its cells have run in an empty folder, with few steps."""
    notebook = read(ROOT / "examples" / f"{request.param}.ipynb")
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())
    ]
    short = SHORT[request.param]
    assert re.findall(r"^(\w+) = ", parameters.source, re.MULTILINE) == list(short)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in short.items())
    run(notebook, tmp_path)
    return notebook


@pytest.mark.parametrize("executed", ["your_own_images"], indirect=True)
def test_your_own_images(executed, tmp_path):
    assert (tmp_path / "runs/mine/pipeline").is_dir()
    assert len(list(tmp_path.glob("images/held_out/*/*.png"))) == 308
    assert len(outputs(executed, "image/png")) == 3  # reconstructions, codes, samples
    trained, found = outputs(executed, "text/html")
    assert "<td>prior_bottom</td>" in trained
    assert "308 held-out images" in found
    assert outputs(executed, "stderr") == []
    # The progress of a task is one line, which is updated in place.
    tasks = [text for text in outputs(executed, "text/plain") if " took " in text]
    assert [task.split("  ")[0] for task in tasks] == [
        "train VQ-VAE",
        "extract train",
        "extract held out",
        "train prior top",
        "train prior bottom",
    ]
    assert not any(" left " in text for text in outputs(executed, "text/plain"))


def test_commands_of_a_notebook_exist():
    notebook = read(ROOT / "examples/your_own_images.ipynb")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    commands = re.findall(r"^vqvae2-fast (\w+) (.*)$", text, re.MULTILINE)
    assert [name for name, _ in commands] == ["sample", "compress", "serve"]
    for name, options in commands:
        cli._parse(cli._kind(name), name, options.split())


@pytest.mark.parametrize("executed", ["quantizer_in_your_model"], indirect=True)
def test_quantizer_in_your_model(executed, tmp_path):
    assert len(outputs(executed, "image/png")) == 3  # perplexity, codes, reconstructions
    (quantizer,) = outputs(executed, "text/html")
    assert quantizer.startswith("<p>VectorQuantizerEMA</p>")
    said = "".join(outputs(executed, "stdout"))
    assert re.findall(r"^(\w+): (\d+) bits per image", said, re.MULTILINE) == [
        ("VectorQuantizerEMA", "576"),
        ("FSQ", "576"),
        ("ResidualVQ", "1152"),
    ]
    assert "codes equal: 100.00%" in said
    assert "the same codes: True" in said
    assert outputs(executed, "stderr") == []
    assert (tmp_path / "autoencoder.safetensors").is_file()


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS} == set(SHORT)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_outputs_of_one_run_from_top_to_bottom(path):
    notebook = read(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert len(outputs(notebook, "image/png")) == 3
    assert outputs(notebook, "stderr") == []


def test_the_outputs_kept_are_those_of_the_preset_as_it_is():
    shown = "\n".join(outputs(read(ROOT / "examples/your_own_images.ipynb"), "text/plain"))
    training = preset("emoji32").training
    steps = [str(config.steps) for config in (training.vqvae, *training.priors)]
    assert re.findall(r"^train .*?  (\d+)/\1  took", shown, re.MULTILINE) == steps


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    for target in targets:
        assert (path.parent / target).is_file(), target
