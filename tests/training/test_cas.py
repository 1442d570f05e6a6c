"""The classification accuracy score: its classifiers, and runs of them that are there already."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.models.classifier import Classifier
from vqvae2_fast.runs import InterruptedRun
from vqvae2_fast.training import classifier
from vqvae2_fast.training.classifier import classification_accuracy_score

QUIET = Progress(quiet=True)


def images(count: int, seed: int) -> ImageTensorDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageTensorDataset(pixels, torch.arange(count) % 2, ("even", "odd"))


def test_a_classifier_of_other_images_names_its_folder_and_no_argument(tmp_path):
    def scored(seed):
        sets = {"real": images(8, seed)}, {"real": images(4, 1)}
        classification_accuracy_score(*sets, out=tmp_path, steps=1, progress=QUIET)

    scored(0)
    with pytest.raises(ValueError, match="would not be the one that was begun") as refused:
        scored(2)
    remedy = f"Delete {tmp_path / 'real'} to train that classifier again, or name another folder."
    assert str(refused.value).endswith(remedy)
    assert "=True" not in str(refused.value)


def test_any_number_of_processes_shares_one_batch(tmp_path, monkeypatch):
    taken = []

    def train(stage, settings, **_):
        taken.append([settings.cut(rank, 2).batch_size for rank in range(2)])
        raise StopIteration

    monkeypatch.setattr(classifier, "train", train)
    with pytest.raises(StopIteration):
        sets = {"real": images(200, 0)}, {"real": images(4, 1)}
        classification_accuracy_score(*sets, out=tmp_path, steps=1, progress=QUIET)
    assert taken == [[64, 64]]


def test_an_interrupted_score_is_continued_by_the_same_call(tmp_path, monkeypatch):
    def scored():
        sets = {"real": images(8, 0)}, {"real": images(4, 1)}
        return classification_accuracy_score(*sets, out=tmp_path, steps=3, progress=QUIET)

    forward = Classifier.forward

    def interrupted(self, images):
        os.kill(os.getpid(), signal.SIGINT)
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", interrupted)
    with pytest.raises(InterruptedRun, match=r"Continue with the same arguments\.$") as stopped:
        scored()
    assert stopped.value.signal_number == signal.SIGINT
    monkeypatch.setattr(Classifier, "forward", forward)
    assert scored()[0].images == 8
