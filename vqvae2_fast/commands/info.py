"""`vqvae2-fast info`: what is installed, what a checkpoint or a code store holds."""

from __future__ import annotations

import platform
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import Annotated, Any, Literal

import torch
import tyro

import vqvae2_fast
from vqvae2_fast import ops
from vqvae2_fast.checkpoints.checkpoint import checkpoint_folder, load, load_training, read_config
from vqvae2_fast.commands.common import Command, Result
from vqvae2_fast.commands.sampler_plan import sampler_plan
from vqvae2_fast.data import verify
from vqvae2_fast.data.code_manifest import MANIFEST, read_manifest
from vqvae2_fast.presets import preset, preset_names
from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["Info"]


@dataclass(kw_only=True)
class Info(Command):
    """Describe this installation, or a run, checkpoint, pipeline or code store.

    Exit code 1 if --verify finds damage.
    """

    path: Annotated[Path | None, tyro.conf.Positional] = None
    """What to describe, or the folder of two stores that `extract` left; nothing: the
    installation."""
    presets: bool = False
    """List the presets with their sizes."""
    verify: bool = False
    """Read every byte of code stores and compare checksums; checkpoints are always read whole."""

    sampler: bool = False
    """How engine `cuda` would draw from a prior, a pipeline or the priors of --preset: what is kept
    where, who waits for whom, and the time that a model of the card expects. Needs no GPU."""
    preset: str | None = None
    """With --sampler: the preset whose priors to plan for."""
    card: Literal["a100", "h100", "b200"] = "h100"
    """With --sampler: the card."""
    engine: Literal["cuda", "cuda_tf32", "cuda_bfloat16"] = "cuda"
    """With --sampler: how products are made."""
    batch_size: int = 1
    """With --sampler: images drawn side by side."""
    window: int = 1
    """With --sampler: codes of a step, guesses but the first."""

    def run(self) -> Result:
        self.prepare()
        if self.presets:
            return _presets()
        if self.sampler:
            return sampler_plan(
                self.path, self.preset, self.card, self.engine, self.batch_size, self.window
            )
        if self.path is None:
            return _installation()
        if (self.path / MANIFEST).is_file():
            return self._store(self.path)
        stores = [self.path / split for split in ("train", "held_out")]
        if any((store / MANIFEST).is_file() for store in stores):
            return self._stores([store for store in stores if (store / MANIFEST).is_file()])
        return _checkpoint(self.path)

    def _stores(self, paths: list[Path]) -> Result:
        parts = {path.name: self._store(path) for path in paths}
        lines = [line for name, part in parts.items() for line in (f"{name}:", *part.lines)]
        damaged = [name for name, part in parts.items() if part.exit_code]
        if damaged:
            lines.append(f"damaged stores: {', '.join(damaged)}; see above")
        return Result(
            {name: part.values for name, part in parts.items()}, lines, 1 if damaged else 0
        )

    def _store(self, path: Path) -> Result:
        manifest = read_manifest(path)
        missing = sum(stop - first for first, stop in manifest.missing())
        values: dict[str, Any] = {
            "kind": "code store",
            "path": str(path),
            "records": manifest.records,
            "missing": missing,
            "shards": len(manifest.shards),
            "bytes": manifest.records * manifest.layout.record_bytes,
            "bytes_per_record": manifest.layout.record_bytes,
            "num_embeddings": manifest.layout.num_embeddings,
            "level_sizes": manifest.layout.level_sizes,
            "class_names": manifest.class_names,
            "checkpoint_hash": manifest.checkpoint_hash,
        }
        if not self.verify:
            return Result(values, _lines(values))
        with self.progress().task(f"verify {path.name}", values["bytes"]) as task:
            reports = verify(path, lambda done, total: task.update(done))
        values["damaged"] = {
            report.shard.name: report.problem for report in reports if report.problem
        }
        lines = _lines({name: value for name, value in values.items() if name != "damaged"})
        lines += [f"damaged: {name}: {problem}" for name, problem in values["damaged"].items()]
        if values["damaged"]:
            call = f"from vqvae2_fast.data import discard_damaged; discard_damaged({str(path)!r})"
            lines.append(
                f"{len(values['damaged'])} of {len(reports)} shards are damaged. Take them out: "
                f"{shlex.join(['python', '-c', call])}; then extract again with --resume."
            )
        else:
            lines.append(f"verified: {len(reports)} shards are sound")
        return Result(values, lines, exit_code=1 if values["damaged"] else 0)


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


def _checkpoint(path: Path) -> Result:
    try:
        folder = checkpoint_folder(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"info: expected a run, checkpoint, pipeline or code store: {error}"
        ) from error
    header = read_config(folder)
    values: dict[str, Any] = {"path": str(folder), **header}
    if header["kind"] == "pipeline":
        pipeline = load(folder, expect=Pipeline)
        models = {"vqvae": pipeline.vqvae}
        models |= dict(zip(header["config"]["levels"], pipeline.priors, strict=True))
        values["parameters"] = {name: _size(model) for name, model in models.items()}
    else:
        values["parameters"] = _size(load(folder))
        if (folder / "state.json").exists():
            state = load_training(folder).state
            values |= {"step": state["step"], "train": state["train"], "metrics": state["metrics"]}
    return Result(values, _lines(values))


def _lines(values: dict[str, Any]) -> list[str]:
    return [f"{name}: {value}" for name, value in values.items()]


def _size(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
