"""A folder of images and small models of both stages, made without training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.models import SMALL_VQVAE, tiny_pipeline
from PIL import Image

from vqvae2_fast.checkpoints import save
from vqvae2_fast.cli import main
from vqvae2_fast.data.sample_folder import read_index
from vqvae2_fast.models.vqvae2 import VQVAE2

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """18 images to train on and 6 held out, of two classes, 9×9."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(24):
        side = "held_out" if number < 6 else "train"
        path = root / side / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(9, 9, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="session")
def vqvae(tmp_path_factory) -> Path:
    """A VQ-VAE of 8×8 images whose codebooks start from its vectors."""
    torch.manual_seed(0)
    config = replace(SMALL_VQVAE, num_embeddings=16)
    model = VQVAE2(config)
    model(torch.rand(64, 3, 8, 8) * 2 - 1)
    path = tmp_path_factory.mktemp("models") / "vqvae"
    save(model.eval(), path)
    return path


@pytest.fixture(scope="session")
def codes(tmp_path_factory, images, vqvae) -> Path:
    """The stores that `extract` makes of them."""
    out = tmp_path_factory.mktemp("codes") / "codes"
    arguments = ["extract", "--vqvae", str(vqvae), "--data", str(images), "--out", str(out)]
    assert main([*arguments, "--quiet"]) == 0
    return out


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory) -> Path:
    """A folder with two pipelines of 16×16 images: `classes` has cats, cows and dogs, `plain` has
    grey images and no classes."""
    root = tmp_path_factory.mktemp("pipelines")
    save(tiny_pipeline(), root / "classes", class_names=("cat", "cow", "dog"))
    save(tiny_pipeline(0, image_channels=1), root / "plain")
    return root


def sample_arguments(
    pipelines: Path, out: Path, *arguments: str, pipeline: str = "classes"
) -> list[str]:
    """The words of `sample`, which draws from one of the pipelines into a folder."""
    options = " ".join(arguments)
    return f"sample --pipeline {pipelines / pipeline} --out {out} --quiet {options}".split()


@pytest.fixture
def sample(pipelines):
    """Runs `sample`; returns its exit code."""
    return lambda *arguments, **options: main(sample_arguments(pipelines, *arguments, **options))


@pytest.fixture
def sample_error(pipelines, error_of):
    """What `sample` says when it ends with a code."""

    def run(*arguments, code: int = 2, **options) -> str:
        return error_of(sample_arguments(pipelines, *arguments, **options), code)

    return run


@pytest.fixture
def column():
    """A column of a folder's index."""
    return lambda out, name: [row[name] for row in read_index(out)]


@pytest.fixture
def pixels():
    """The bytes of an image file, in the order of its rows."""

    def read(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            return torch.tensor(list(image.tobytes()), dtype=torch.uint8)

    return read


@pytest.fixture
def run(capsys):
    """Runs the command line, given as paths and as text of one or several words. Returns the exit
    code, standard output and standard error."""

    def call(*parts: object) -> tuple[int, str, str]:
        words: list[str] = []
        for part in parts:
            words += str(part).split() if isinstance(part, str) else [str(part)]
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def run_in_two_processes(tmp_path, monkeypatch, capsys):
    """Runs the command line as torchrun would, with this process as the first of two."""

    def call(*arguments: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        code = "import sys; from vqvae2_fast.cli import main; sys.exit(main(sys.argv[1:]))"
        words = " ".join(arguments).split()
        with subprocess.Popen(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            env=os.environ | shared | {"RANK": "1", "LOCAL_RANK": "1", "OMP_NUM_THREADS": "1"},
        ) as other:
            with monkeypatch.context() as first:
                for name, value in (shared | {"RANK": "0", "LOCAL_RANK": "0"}).items():
                    first.setenv(name, value)
                assert main(words) == 0
            outputs = [capsys.readouterr().out, other.communicate()[0]]
        assert other.returncode == 0
        return outputs

    return call


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """The current folder, with a pipeline of 16×16 images, and photos/ with images of three
    sizes."""
    save(tiny_pipeline(num_classes=3), tmp_path / "pipeline", class_names=("a", "b", "c"))
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(16, 16), (16, 16), (40, 23), (9, 50)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def files():
    """The contents of a folder: the bytes of each file except locks, by path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".lock"
        }

    return read
