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


def test_compressed_records_are_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    with pytest.raises(ValueError, match="holds compressed records"):
        load_checkpoint(tmp_path / "a.pt")
