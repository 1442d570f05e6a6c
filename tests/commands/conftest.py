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
from PIL import Image

from vqvae2_fast.checkpoints import save
from vqvae2_fast.cli import main
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.testing.configs import SMALL_VQVAE

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


@pytest.fixture
def run(capsys):
    """Runs the command line. Returns the exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
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
        with subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            env=os.environ | shared | {"RANK": "1", "LOCAL_RANK": "1", "OMP_NUM_THREADS": "1"},
        ) as other:
            with monkeypatch.context() as first:
                for name, value in (shared | {"RANK": "0", "LOCAL_RANK": "0"}).items():
                    first.setenv(name, value)
                assert main(list(arguments)) == 0
            outputs = [capsys.readouterr().out, other.communicate()[0]]
        assert other.returncode == 0
        return outputs

    return call


@pytest.fixture
def files():
    """The contents of a folder: the bytes of each file, by path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read
