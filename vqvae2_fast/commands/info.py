"""`vqvae2-fast info`: what is installed, what a checkpoint or a code store holds."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import Annotated, Any

import torch
import tyro

import vqvae2_fast
from vqvae2_fast import ops
from vqvae2_fast.commands.common import Command, Result
from vqvae2_fast.data import CodeDataset
from vqvae2_fast.models.configs import preset, preset_names
from vqvae2_fast.training.checkpoint import checkpoint_folder, load, read_config, resume

__all__ = ["Info"]


@dataclass(kw_only=True)
class Info(Command):
    """Describe this installation, or a run, checkpoint, pipeline or code store."""

    path: Annotated[Path | None, tyro.conf.Positional] = None
    """What to describe; nothing: the installation."""
    presets: bool = False
    """List the presets with their sizes."""

    def run(self) -> Result:
        self.prepare()
        if self.presets:
            return _presets()
        if self.path is None:
            return _installation()
        if (self.path / "manifest.json").is_file():
            return _store(self.path)
        return _checkpoint(self.path)


def _installation() -> Result:
    z, codebook = torch.zeros(1, 8), torch.zeros(2, 8)
    values: dict[str, Any] = {
        "vqvae2_fast": vqvae2_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "simd": ops.simd_level(),
        "build": ops.build_info(),
        "nearest_code": ops.owner("nearest_code", z, codebook),
    }
    return Result(values, [f"{name}: {value}" for name, value in values.items()])


def _presets() -> Result:
    values, lines = {}, []
    for name in preset_names():
        config = preset(name)
        height, width = config.vqvae.image_size
        maps = ", ".join(f"{h}x{w}" for h, w in config.vqvae.level_sizes)
        layers = ", ".join(f"{prior.num_layers} of {prior.channels}" for prior in config.priors)
        values[name] = asdict(config)
        lines.append(
            f"{name}: {height}x{width}x{config.vqvae.image_channels}, maps {maps} of "
            f"{config.vqvae.num_embeddings} codes; layers and channels of the priors: {layers}"
        )
    return Result(values, lines)


def _store(path: Path) -> Result:
    codes = CodeDataset.load(path)
    values = {
        "kind": "code store", "records": len(codes), "num_embeddings": codes.num_embeddings,
        "level_sizes": codes.level_sizes, "class_names": codes.class_names,
        "checkpoint_hash": codes.checkpoint_hash,
    }  # fmt: skip
    return Result(values, [f"{name}: {value}" for name, value in values.items()])


def _checkpoint(path: Path) -> Result:
    folder = checkpoint_folder(path)
    header = read_config(folder)
    values: dict[str, Any] = {"path": str(folder), **header}
    if header["kind"] == "pipeline":
        pipeline = load(folder)
        models = {"vqvae": pipeline.vqvae}
        models |= dict(zip(header["config"]["levels"], pipeline.priors, strict=True))
        values["parameters"] = {name: _size(model) for name, model in models.items()}
    else:
        values["parameters"] = _size(load(folder))
        if (folder / "state.json").exists():
            state = resume(folder).state
            values |= {"step": state["step"], "train": state["train"], "metrics": state["metrics"]}
    return Result(values, [f"{name}: {value}" for name, value in values.items()])


def _size(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
