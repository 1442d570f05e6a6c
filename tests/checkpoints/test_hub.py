"""Models go to the Hub and come back, here by way of a folder in place of the network."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

import vqvae2_fast as vq2
from vqvae2_fast.checkpoints.hub import model_card


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub as folders OWNER/NAME of a folder."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token=None) -> None:
            assert token is None

        def create_repo(self, repository, *, private, exist_ok) -> None:
            assert (private, exist_ok) == (False, True)
            (root / repository).mkdir(parents=True, exist_ok=True)

        def upload_folder(
            self, *, repo_id, folder_path, revision, delete_patterns, commit_message
        ) -> SimpleNamespace:
            assert revision is None
            for pattern in delete_patterns:
                for old in (root / repo_id).rglob(pattern):
                    old.unlink()
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"{repo_id}: {commit_message}")

    def download(repository, *, revision, token, allow_patterns):
        folder = tmp_path / "cache"
        for pattern in allow_patterns:
            for path in (root / repository).rglob(pattern):
                copy = folder / path.relative_to(root / repository)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return root


def test_a_pipeline_comes_back(hub):
    pipeline = vq2.from_preset("emoji32")
    said = vq2.push_to_hub(pipeline, "someone/emoji")
    assert said == f"someone/emoji: Save by vqvae2_fast {vq2.__version__}"
    found = vq2.from_pretrained("someone/emoji")
    ours, theirs = pipeline.vqvae.state_dict(), found.vqvae.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.class_names == pipeline.class_names
    assert (hub / "someone/emoji/README.md").read_text() == model_card(pipeline, "someone/emoji")


def test_a_model_takes_the_place_of_a_pipeline(hub):
    pipeline = vq2.from_preset("emoji32")
    vq2.push_to_hub(pipeline, "someone/emoji")
    vq2.push_to_hub(pipeline.vqvae, "someone/emoji", card="mine\n")
    assert isinstance(vq2.from_pretrained("someone/emoji"), vq2.VQVAE2)
    assert (hub / "someone/emoji/README.md").read_text() == "mine\n"


def test_a_folder_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    vq2.save(vq2.from_preset("emoji32").vqvae, tmp_path / "vqvae")
    assert isinstance(vq2.from_pretrained(tmp_path / "vqvae"), vq2.VQVAE2)


def test_what_is_neither_a_folder_nor_a_name():
    with pytest.raises(
        ValueError, match="expected source to be a folder or a repository OWNER/NAME, got 'a/b/c'"
    ):
        vq2.from_pretrained("a/b/c")
    with pytest.raises(
        TypeError,
        match="^expected source to be a folder or a repository .*, got None",
    ):
        vq2.from_pretrained(None)


def test_a_repository_that_cannot_be_reached_is_named(monkeypatch):
    def unreachable(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Got: ConnectError")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    message = "^expected source .*, got 'owner/name'.* the Hub cannot be reached"
    with pytest.raises(FileNotFoundError, match=message):
        vq2.from_pretrained("owner/name")


def test_the_card_says_what_is_in_it():
    card = model_card(
        vq2.from_preset("emoji32"),
        "someone/emoji",
        licence="mit",
        data="Emoji.",
        metrics={"PSNR, dB": 27.9198},
    )
    metadata, text = card.split("---\n")[1:]
    assert "library_name: vqvae2_fast\n" in metadata
    assert 'license: "mit"\n' in metadata
    assert "- VQ-VAE: 0.31 million parameters" in text
    assert 'vq2.from_pretrained("someone/emoji")' in text
    assert "## Data\nEmoji.\n" in text
    assert "| PSNR, dB | 27.92 |" in text
