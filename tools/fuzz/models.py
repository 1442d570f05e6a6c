"""The targets of models: pipelines, classifiers, trainings (whole, in shards), the port's files."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.checkpoints.checkpoint import (
    class_names,
    load,
    load_training,
    save,
    save_training,
    sharded_save,
)
from vqvae2_fast.checkpoints.files import host_copies
from vqvae2_fast.checkpoints.shards import rows_of, write_shard
from vqvae2_fast.checkpoints.sums import SHARDS, sums_of, write_sums
from vqvae2_fast.compat import rosinality
from vqvae2_fast.models.classifier import Classifier, ClassifierConfig
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling import calibrate
from vqvae2_fast.sampling.pipeline import Pipeline

if TYPE_CHECKING:
    from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.models import SMALL_VQVAE, TINY_PRIOR, TINY_VQVAE  # noqa: E402

__all__ = [
    "MAKE_MODELS",
    "MAKE_PORT",
    "MAKE_RUNS",
    "read_model",
    "read_port",
    "read_run",
    "seal_checkpoints",
]


def _vqvae() -> VQVAE2:
    torch.manual_seed(0)
    return VQVAE2(replace(TINY_VQVAE, image_channels=1, init="normal")).eval()


def _prior(num_classes: int = 0) -> PixelSNAIL:
    torch.manual_seed(1)
    return PixelSNAIL(replace(TINY_PRIOR, num_classes=num_classes)).eval()


def _make_pipeline(folder: Path) -> None:
    save(Pipeline(_vqvae(), [_prior()]), folder / "c")


def _make_calibrated(folder: Path) -> None:
    """In bfloat16, with names of classes, settings to draw with, and ranges of a prior's inputs."""
    prior = _prior(num_classes=2)
    calibrate(prior, [(torch.zeros(3, 2, 2, dtype=torch.long), [], torch.tensor([0, 1, 1]))])
    pipeline = Pipeline(_vqvae(), [prior], ["cat", "dog"], {"temperature": 0.9, "top_k": 3})
    save(pipeline, folder / "c", dtype=torch.bfloat16)


def _make_quantized(folder: Path) -> None:
    config = replace(SMALL_VQVAE, num_embeddings=9, quantizer=("residual:3,3", "fsq:3,3"))
    save(VQVAE2(config).eval(), folder / "c")


def _make_classifier(folder: Path) -> None:
    config = ClassifierConfig((16, 16), 1, num_classes=2, network="small", channels=8)
    save(Classifier(config).eval(), folder / "c", class_names=["cat", "dog"])


def _training(model: torch.nn.Module) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    moments = {f"{name}.exp_avg": weight for name, weight in weights.items()}
    state = {"step": 3, "train": {"seed": 0}, "metrics": {"bits": 1.5}, "best": None}
    return {"average": weights, "optimizer": moments}, state


def _make_run(folder: Path) -> None:
    parts, state = _training(model := _vqvae())
    companion = {"weight": torch.zeros(3, 2)}
    save_training(folder / "c", model, **parts, state=state, companion=companion)


def _make_shards(folder: Path) -> None:
    parts, state = _training(model := _prior())
    parts["model"] = model.state_dict()
    with sharded_save(folder / "c", model, state=state) as (place, name, sums):
        for rank in range(2):
            tensors = {
                f"{part}.{key}": _rows(tensor, rank)
                for part, found in parts.items()
                for key, tensor in found.items()
                if tensor.ndim or not rank
            }
            sums.append(write_shard(Path(place), rank, 2, name, host_copies(tensors)))


def _rows(tensor: Tensor, rank: int) -> Tensor:
    """The part of a tensor that one of two processes holds."""
    if not tensor.ndim:
        return tensor
    rows = rows_of(len(tensor), rank, 2)
    return tensor[rows.start : rows.stop]


def _make_port_vqvae(folder: Path) -> None:
    model = rosinality.VQVAE(channel=4, n_res_block=1, n_res_channel=2, embed_dim=4, n_embed=8)
    torch.save(model.state_dict(), folder / "a.pt")


def _make_port_prior(folder: Path) -> None:
    model = rosinality.PixelSNAIL([4, 4], 8, 4, 3, 1, 1, 2, attention=False, n_out_res_block=1)
    arguments = argparse.Namespace(hier="top", channel=4)
    torch.save({"model": model.state_dict(), "args": arguments}, folder / "a.pt")


MAKE_MODELS = (_make_pipeline, _make_calibrated, _make_quantized, _make_classifier)
MAKE_RUNS = (_make_run, _make_shards)
MAKE_PORT = (_make_port_vqvae, _make_port_prior)


def read_model(folder: Path, out: Path) -> None:
    load(folder / "c")
    class_names(folder / "c")


def read_run(folder: Path, out: Path) -> None:
    """As a run that continues reads it: whole, and as the second of two processes."""
    load_training(folder / "c")
    load_training(folder / "c", share=(1, 2))
    load(folder / "c")


def read_port(folder: Path, out: Path) -> None:
    found = rosinality.load_checkpoint(folder / "a.pt")
    if any("horizontal" in name for name in found.state_dict):
        rosinality.load_pixelsnail(folder / "a.pt")
    else:
        rosinality.load_vqvae(folder / "a.pt", rectified_skip=False)


def seal_checkpoints(folder: Path) -> None:
    """Writes the checksums of what the files are now."""
    for index in (folder / "c").rglob(SHARDS):
        shards = sorted(index.parent.glob("shard-*"))
        if isinstance(value := json.loads(index.read_text()), dict):
            value["shards"] = [sums_of(path) for path in shards]
            index.write_text(json.dumps(value))
    for sums in (folder / "c").rglob("files.json"):
        write_sums(sums.parent)
