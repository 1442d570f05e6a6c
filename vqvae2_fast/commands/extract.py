"""`vqvae2-fast extract`: images to code maps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro

from vqvae2_fast.commands.common import (
    Command,
    DataOptions,
    Result,
    load_vqvae,
    open_images,
    write_result,
)
from vqvae2_fast.data import CodeDataset, ImageFolder, ImageTensorDataset, in_order
from vqvae2_fast.metrics import codebook_use
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.training import Progress
from vqvae2_fast.training.checkpoint import checkpoint_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["Extract", "extract_codes"]

_BATCH = 128  # images


@dataclass(kw_only=True)
class Extract(Command):
    """Encode all images by a trained VQ-VAE; leaves code stores OUT/train and OUT/held_out."""

    vqvae: Path
    """Folder of a VQ-VAE's run, or a checkpoint of one."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    out: Path = Path("runs/codes")
    """Folder for the two stores."""
    flip: bool = False
    """Also encode the training images mirrored left to right, as further records."""

    def run(self) -> Result:
        device = self.prepare()
        for split in ("train", "held_out"):
            if (self.out / split / "manifest.json").exists():
                raise ValueError(
                    f"--out: {self.out / split} holds codes already; name another folder."
                )
        model = load_vqvae(self.vqvae, device)
        digest = hashlib.sha256(
            (checkpoint_folder(self.vqvae) / "model.safetensors").read_bytes()
        ).hexdigest()
        progress = self.progress()
        values: dict[str, object] = {"codes": str(self.out), "checkpoint_sha256": digest}
        lines = []
        for split in ("train", "held_out"):
            config = model.config
            images = open_images(self.source, split, config.image_channels, config.image_size)
            mirrors = (False, True) if self.flip and split == "train" else (False,)
            codes = extract_codes(
                model, images, mirrors=mirrors, checkpoint_hash=digest, progress=progress,
                name=f"extract {split}",
            )  # fmt: skip
            codes.save(self.out / split)
            use = {
                level: codebook_use(maps, config.num_embeddings)
                for level, maps in zip(level_names(config.num_levels), codes.codes, strict=True)
            }
            values[split] = {
                "records": len(codes),
                "codes_used": {level: used.used for level, used in use.items()},
                "perplexity": {level: used.perplexity for level, used in use.items()},
            }
            shown = ", ".join(f"{level} {used.used}" for level, used in use.items())
            lines.append(
                f"{split}: {len(codes)} records in {self.out / split}; codes used of "
                f"{config.num_embeddings}: {shown}"
            )
        write_result(self.out / "result.json", values)
        return Result(values, lines)


@torch.no_grad()
def extract_codes(
    model: VQVAE2,
    images: ImageTensorDataset | ImageFolder,
    *,
    mirrors: Sequence[bool] = (False,),
    checkpoint_hash: str = "",
    progress: Progress | None = None,
    name: str = "extract",
) -> CodeDataset:
    """The code maps of a set, in its order; once for each entry of `mirrors`, True mirrored."""
    device = next(model.parameters()).device
    maps: list[list[torch.Tensor]] = []
    labels = []
    total = len(images) * len(mirrors)
    with (progress or Progress(quiet=True)).task(name, total) as task:
        done = 0
        for mirrored in mirrors:
            for batch, batch_labels in in_order(images, _BATCH):
                batch = batch.to(device).contiguous(memory_format=torch.channels_last)
                maps.append(
                    [codes.cpu() for codes in model.encode(batch.flip(-1) if mirrored else batch)]
                )
                labels.append(batch_labels)
                done += len(batch)
                task.update(done)
    levels = [torch.cat(level) for level in zip(*maps, strict=True)]
    return CodeDataset(
        levels, model.config.num_embeddings, torch.cat(labels), images.class_names, checkpoint_hash
    )
