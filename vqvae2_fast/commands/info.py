"""`vqvae2-fast info`: what is installed, or what a checkpoint, codes or samples are."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vqvae2_fast.checkpoints.checkpoint import checkpoint_folder, load, load_training, read_config
from vqvae2_fast.checkpoints.hub import read_card
from vqvae2_fast.checkpoints.models import described_model
from vqvae2_fast.checkpoints.pretrained import pretrained_folder, pretrained_names
from vqvae2_fast.checkpoints.sums import SHARDS, shard_files
from vqvae2_fast.codec import describe, open_compressed
from vqvae2_fast.codec.bitstream import begins_as_compressed
from vqvae2_fast.codec.codes import pipeline_hash
from vqvae2_fast.commands.common import Command, Result
from vqvae2_fast.commands.installation import installation
from vqvae2_fast.console.words import described, number
from vqvae2_fast.data import verify
from vqvae2_fast.data.code_format import MANIFEST, read_manifest
from vqvae2_fast.data.code_store import missing_or_cut
from vqvae2_fast.data.sample_folder import INDEX, SETTINGS, read_index, read_settings
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.models.weights_hash import weights_hash
from vqvae2_fast.presets import preset, preset_names
from vqvae2_fast.runs.folder import best_record
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.sampling.quantized import Calibration

if TYPE_CHECKING:
    from vqvae2_fast.checkpoints.models import Model

__all__ = ["Info"]

_EXPECTED = "a run, checkpoint, pipeline, code store, .vq2 file or folder of samples"
_BEST = {"metric": str, "value": float, "step": int}  # what a run keeps of its best checkpoint


@dataclass(kw_only=True)
class Info(Command):
    """Describe this installation, or a run, a checkpoint, a pipeline, a code store, a .vq2 file or
    a folder of samples.

    Ends with exit code 1 if a shard of a code store is missing or was cut, or if --verify finds
    other damage.
    """

    path: Annotated[Path | None, tyro.conf.Positional] = None
    """What to describe: a run, a checkpoint, a pipeline, a code store, the folder of two stores
    that `extract` leaves, a file of `compress`, or a folder that `sample` draws into. Without it,
    this installation."""
    presets: bool = False
    """List the presets with their sizes, and say which come with weights and of what size these
    are."""
    verify: bool = False
    """Read every byte of code stores and compare checksums. Checkpoints are always read whole."""

    def run(self) -> Result:
        self.prepare()
        if self.presets and self.path is not None:
            raise ValueError(f"--presets: expected no path with it, got {self.path}.")
        if self.presets:
            return _presets()
        if self.path is None:
            return installation()
        if self.path.suffix == ".vq2" or (self.path.is_file() and begins_as_compressed(self.path)):
            return _compressed(self.path)
        if (self.path / MANIFEST).is_file():
            return self._store(self.path)
        stores = [self.path / split for split in ("train", "held_out")]
        if any((store / MANIFEST).is_file() for store in stores):
            return self._stores([store for store in stores if (store / MANIFEST).is_file()])
        if any((self.path / name).is_file() for name in (SETTINGS, INDEX)):
            return _samples(self.path)
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
        lines = described(values)
        if self.verify:
            with self.progress().task(f"verify {path.name}", values["bytes"]) as task:
                reports = verify(path, lambda done, total: task.update(done))
        else:
            reports = missing_or_cut(path)
        damaged = {report.shard.name: report.problem for report in reports if report.problem}
        if not self.verify and not damaged:  # which does not mean that all are sound
            return Result(values, lines)
        values["damaged"] = damaged
        lines += [f"damaged: {name}: {problem}" for name, problem in damaged.items()]
        if damaged:
            call = f"from vqvae2_fast.data import discard_damaged; discard_damaged({str(path)!r})"
            lines.append(
                f"{len(damaged)} of {values['shards']} shards are damaged. Take them out: "
                f"{shlex.join(['python', '-c', call])}; then extract again with --resume."
            )
        else:
            lines.append(f"verified: {len(reports)} of {len(reports)} shards are sound")
        return Result(values, lines, exit_code=1 if damaged else 0)


def _compressed(path: Path) -> Result:
    """What a file of `compress` holds; its checksums are always compared."""
    with open_compressed(path) as file:
        found = describe(file)
    values: dict[str, Any] = {
        "kind": "compressed images" if found.sizes != [(0, 0)] else "compressed code maps",
        "path": str(path),
        "pipeline": found.pipeline,
        "engine": found.engine,
        "images": found.images,
        "image_sizes": found.sizes,
        "bytes": path.stat().st_size,
        "bits_per_level": found.payload_bits,
        "overhead_bytes": found.overhead_bytes,
        "bits_per_image": round(found.bits_per_image, 1),
        "levels": len(found.payload_bits),
        "missing_levels": found.missing_levels,
    }
    titles = {
        "levels": "levels in the file (decompress draws any others that the pipeline has)",
        "missing_levels": "levels cut off from the end of the file",
        "bits_per_level": "bits of each level, coarse to fine (top first)",
    }
    of_images = {
        "images": "images or tiles (an image larger than the model's is stored as several tiles)",
        "image_sizes": "image sizes (height x width)",
        "bits_per_image": "bits per image or tile",
    }
    shown = dict(values)
    if found.sizes == [(0, 0)]:  # code maps, each of them whole
        del shown["image_sizes"]
    else:
        titles |= of_images
        shown["image_sizes"] = ", ".join(
            f"{height}x{width}" if height and width else "none (code maps)"
            for height, width in found.sizes
        )
    return Result(values, described({titles.get(name, name): shown[name] for name in shown}))


def _samples(path: Path) -> Result:
    """What a folder of samples holds, whether it is complete or not."""
    begun = read_settings(path)
    drawn = [row["file"] is not None for row in read_index(path)]
    values: dict[str, Any] = {
        "kind": "samples",
        "path": str(path),
        "images": sum(drawn),
        "rejected": len(drawn) - sum(drawn),
        "missing": 0 if begun is None else max(0, begun["count"] - len(drawn)),
        "settings": None if begun is None else begun["settings"],
    }
    shown = values if values["rejected"] else {n: v for n, v in values.items() if n != "rejected"}
    return Result(values, described(shown))


def _presets() -> Result:
    values, lines = {}, []
    for name in preset_names():
        config = preset(name)
        height, width = config.vqvae.image_size
        maps = ", ".join(f"{h}x{w}" for h, w in config.vqvae.level_sizes)
        priors = ", ".join(prior.summary() for prior in config.priors)
        sizes = f"{config.vqvae.num_embeddings} codes; priors: {priors}"
        weights = _weights(name) if name in pretrained_names() else None
        values[name] = asdict(config) | {"weights": weights}
        lines.append(
            f"{name}: {height}x{width}x{config.vqvae.image_channels}, maps {maps} of {sizes}"
        )
        if weights is not None:
            lines[-1] += "; weights come with the package"
            own = f"{weights['num_embeddings']} codes; priors: {', '.join(weights['priors'])}"
            lines[-1] += f", of another size: {own}" if own != sizes else ""
    return Result(values, lines)


def _weights(name: str) -> dict[str, Any]:
    """The sizes of the weights in the package, which may not be those of the preset."""
    folder = pretrained_folder(name)
    levels = read_config(folder)["config"]["levels"]
    return {
        "num_embeddings": _config_of(folder / "vqvae").num_embeddings,
        "priors": [_config_of(folder / f"prior_{level}").summary() for level in levels],
    }


def _config_of(folder: Path) -> Any:
    _, config = described_model(read_config(folder), folder)
    return config


def _checkpoint(path: Path) -> Result:
    folder = checkpoint_folder(path, "PATH", _EXPECTED)
    header = read_config(folder)
    values: dict[str, Any] = {"path": str(folder), **header}
    if (folder / SHARDS).exists():
        values["shards"] = [shard.name for shard in shard_files(folder)]
    model = load(folder)
    if isinstance(model, Pipeline):
        models = {"vqvae": model.vqvae}
        models |= dict(zip(header["config"]["levels"], model.priors, strict=True))
        values["parameters"] = {name: _size(part) for name, part in models.items()}
        values["pipeline"] = pipeline_hash(model).hex()
        values["word_names"] = model.word_names
    else:
        values["parameters"] = _size(model)
        if (folder / "state.json").exists():
            state = load_training(folder).state
            values |= {name: state[name] for name in ("step", "train", "metrics")}
            values["best"] = best_record(state)
    if found := _calibrations(model, header):
        values["calibration"] = found
    lines = described(_for_people(values, path))
    card = read_card(folder)
    if card is not None:
        values["model_card"] = card
        lines += ["", *card.splitlines()]
    return Result(values, lines)


def _calibrations(model: Model | Pipeline, header: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of the calibration for w8a8 of a prior, or of those of a pipeline, and
    whether it is of the weights that are there."""
    if isinstance(model, Pipeline):
        levels = zip(header["config"]["levels"], model.priors, strict=True)
        of_each = {name: _calibration(prior) for name, prior in levels}
        return {name: found for name, found in of_each.items() if found}
    return _calibration(model)


def _calibration(model: object) -> dict[str, Any]:
    found = getattr(model, "calibration", None)
    if not isinstance(model, Prior) or not isinstance(found, Calibration):
        return {}
    return {
        "margin": found.ranges.margin,
        "of_these_weights": found.weights_hash == weights_hash(model),
        "weights_hash": found.weights_hash,
        "codes_hash": found.codes_hash,
    }


def _for_people(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The record of a checkpoint without what is not there, and with fractions named as such.

    Args:
        path: What the user named: a checkpoint, or a run, whose best checkpoint is then named.
    """
    shown = {
        name: value
        for name, value in values.items()
        if value or name not in ("recommended", "recommended_for", "best", "word_names")
    }
    train, best = shown.get("train"), shown.get("best")
    if isinstance(train, dict) and isinstance(train.get("final_learning_rate"), float):
        fraction = f"{number(train['final_learning_rate'])} of the learning rate"
        shown["train"] = train | {"final_learning_rate": fraction}
    if isinstance(best, dict) and {name: type(best.get(name)) for name in _BEST} == _BEST:
        kept = f"; it is kept in {path / 'best'}" if (path / "best").is_dir() else ""
        figure = f"{best['metric'].replace('_', ' ')} {number(best['value'])}"
        shown["best"] = f"{figure} at step {best['step']:,}{kept}"
    return shown


def _size(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())
