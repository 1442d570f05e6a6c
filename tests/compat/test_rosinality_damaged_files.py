"""Files of the port that are damaged, malicious or too large, and how they are refused."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile

import pytest
import torch

from vqvae2_fast.compat.rosinality import (
    VQVAE,
    load_checkpoint,
)


@pytest.fixture
def state() -> dict:
    """The state dict of a small VQ-VAE."""
    return VQVAE(channel=16, n_res_block=1, n_res_channel=8, embed_dim=8, n_embed=32).state_dict()


class Malicious:
    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("place", ["whole", "in_args", "in_model", "instead_of_zip"])
def test_malicious_checkpoint_is_refused_and_nothing_runs(tmp_path, state, place):
    trace, path = tmp_path / "trace", tmp_path / "file.pt"
    harm = Malicious(str(trace))
    contents = {
        "whole": harm,
        "in_args": {"model": state, "args": argparse.Namespace(path=harm)},
        "in_model": {"model": {"enc_b.blocks.0.weight": harm}},
        "instead_of_zip": harm,
    }[place]
    if place == "instead_of_zip":
        path.write_bytes(pickle.dumps(contents, protocol=2))
        pickle.loads(path.read_bytes())
    else:
        torch.save(contents, path)
        torch.load(path, weights_only=False)
    assert trace.exists()  # the ordinary loader runs it
    trace.rmdir()

    with pytest.raises(ValueError, match="is refused, and nothing of it was run"):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"abc",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-30],
        lambda content: content.replace(b"PK\x03\x04", b"PK\x03\x05", 1),
        lambda content: content.replace(b"storage", b"st\xferage"),
        lambda content: b"\x80\x02" + content[100:],
    ],
    ids=["empty", "text", "half", "end", "record", "name", "pickle"],
)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_damaged_files_are_refused_by_name_in_few_words(tmp_path, state, damage, name):
    torch.save(state, tmp_path / name)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(
        ValueError, match=f"{name} is (damaged|refused|not a safetensors file)"
    ) as caught:
        load_checkpoint(tmp_path / name)
    assert "weights_only" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 450


def test_compressed_records_are_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    with pytest.raises(ValueError, match="holds compressed records"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt is a FIFO"):
        load_checkpoint(tmp_path / "a.pt")


def test_args_of_another_type_are_refused(tmp_path, state):
    torch.save({"model": state, "args": [1]}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"argparse\.Namespace or a dictionary, got list"):
        load_checkpoint(tmp_path / "file.pt")


DAMAGE = {
    "pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "number": lambda path: path.write_bytes(b"\x80\x02G."),
    "legacy": lambda path: (
        torch.save({"a": torch.ones(9)}, path, _use_new_zipfile_serialization=False),
        path.write_bytes(path.read_bytes()[:-3]),
    ),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_with_the_reason(tmp_path, damage):
    path = tmp_path / "file.pt"
    DAMAGE[damage](path)
    with pytest.raises(ValueError, match=r"file\.pt is (damaged|refused|a folder)") as caught:
        load_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_file_that_is_not_there_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "file.pt")
