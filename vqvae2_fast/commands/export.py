"""`vqvae2-fast export`: a part of a VQ-VAE for another runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from vqvae2_fast.checkpoints.checkpoint import checkpoint_folder, load
from vqvae2_fast.commands.common import Command, Result, check_out_file, named, open_preset
from vqvae2_fast.export import export_program, save_onnx, save_program
from vqvae2_fast.files.durable import explained
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling import Pipeline

__all__ = ["Export"]


@dataclass(kw_only=True)
class Export(Command):
    """Write the encoder, the decoder or both of a VQ-VAE as an ONNX file or a torch.export program.

    The program takes any number of images of one size. docs/export.md shows how to run it.
    """

    path: Annotated[Path | None, tyro.conf.Positional] = None
    """A run or checkpoint of a VQ-VAE, or a pipeline."""
    preset: str | None = None
    """In place of the path: a pretrained pipeline that comes with the package, such as emoji32."""
    part: Literal["encoder", "decoder", "autoencoder"] = "encoder"
    """From images to codes, from codes to images, or both."""
    size: tuple[int, int] | None = None
    """Height and width of the images; by default those of the model."""
    out: Path | None = None
    """What to write: NAME.onnx or NAME.pt2; by default the part's name with .onnx."""
    overwrite: bool = False
    """Replace what is at --out."""
    own_search: bool = False
    """Keep this package's search in a .pt2 file, which gives the codes of `extract` in every case
    and needs this package. Otherwise programs consist of PyTorch's own operators."""

    def run(self) -> Result:
        self.check_one_process()
        out = self.out or Path(f"{self.part}.onnx")
        if out.suffix not in (".onnx", ".pt2"):
            raise ValueError(f"--out: expected NAME.onnx or NAME.pt2, got {out}.")
        if out.suffix == ".onnx" and self.own_search:
            raise ValueError(f"--own-search: expected --out NAME.pt2, got {out}.")
        check_out_file(out, f"{self.part}{out.suffix}")
        if out.exists() and not self.overwrite:
            raise ValueError(
                f"--out: {out} exists already. Add --overwrite to replace it, or name another file."
            )
        self.prepare_on_cpu()
        model = self._model()
        vqvae = model.networks()[0] if isinstance(model, Pipeline) else model
        size = self.size or vqvae.config.image_size
        # Before the minutes that a large model takes.
        with explained(f"cannot write {out}", "Name another folder"):
            out.parent.mkdir(parents=True, exist_ok=True)
        program = export_program(vqvae, self.part, size, aten=not self.own_search)
        (save_onnx if out.suffix == ".onnx" else save_program)(program, out)
        written = out.stat().st_size
        return Result(
            {"out": str(out), "part": self.part, "bytes": written},
            [f"{self.part}: {out}, {written / 1e6:.1f} MB"],
        )

    def _model(self) -> VQVAE2 | Pipeline:
        if (self.path is None) == (self.preset is None):
            raise ValueError(
                "export: expected the path of a VQ-VAE or a pipeline, or --preset, got "
                f"{'neither' if self.path is None else 'both'}."
            )
        # Programs are made of the calls for a CPU; they run wherever their runtime does.
        if self.path is None:
            assert self.preset is not None
            return open_preset(self.preset, torch.device("cpu"))
        model = load(checkpoint_folder(self.path, "PATH"), torch.device("cpu"))
        if not isinstance(model, VQVAE2 | Pipeline):
            raise ValueError(
                f"export: expected a VQ-VAE or a pipeline at {self.path}, found a {named(model)}."
            )
        return model
