"""`vqvae2-fast extract`: images to code maps."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from torch import distributed

from vqvae2_fast.commands.common import (
    Command,
    Result,
    load_vqvae,
    write_result,
)
from vqvae2_fast.commands.dry_run import plan_of_extraction
from vqvae2_fast.commands.sources import DataOptions, open_images
from vqvae2_fast.data import CodeStore, codes_in_order
from vqvae2_fast.data.code_layout import CodeLayout
from vqvae2_fast.data.code_manifest import MANIFEST
from vqvae2_fast.metrics import CodebookUse, codebook_use
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.training import Progress
from vqvae2_fast.training.extraction import (
    SHARD_RECORDS,
    Variants,
    extract_codes,
    missing_records,
)
from vqvae2_fast.training.stage1 import check_images

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.data import Split
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["Extract", "use_of_codes"]

_STEP = 4096  # records


@dataclass(kw_only=True)
class Extract(Command):
    """Encode all images by a trained VQ-VAE; leaves code stores OUT/train and OUT/held_out.

    Under torchrun the processes share the work. --flip and --copies add records to the training
    store alone.
    """

    vqvae: Path
    """Folder of a VQ-VAE's run, a checkpoint of one, or a pipeline."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    variants: Annotated[Variants, tyro.conf.arg(name="")] = field(default_factory=Variants)
    out: Path = Path("runs/codes")
    """Folder for the two stores."""
    resume: bool = False
    """Go on where extraction into --out was broken off."""
    dry_run: bool = False
    """Open all, check the images against the model and print what would run; write nothing."""
    shard_records: int = SHARD_RECORDS
    """Records that are saved together: what an interruption costs at most."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""

    def run(self) -> Result:
        device = self.prepare()
        splits: tuple[Split, ...] = ("train", "held_out")
        with _ranks() as (rank, world_size):
            if not self.resume:
                self._check_fresh(splits)
            model = load_vqvae(self.vqvae, device)
            config = model.config
            progress = self.progress() if rank == 0 else Progress(quiet=True)
            if self.dry_run:
                return self._plan(model, splits) if rank == 0 else Result({}, [])
            if world_size > 1:
                distributed.barrier()  # nobody writes before all have seen that nothing was there
            for split in splits:
                images = open_images(
                    self.source, split, config.image_channels, config.image_size, progress
                )
                extract_codes(
                    model, images, self.out / split,
                    variants=self._variants(split),
                    rank=rank, world_size=world_size, shard_records=self.shard_records,
                    workers=self.workers, progress=progress, name=f"extract {split}",
                )  # fmt: skip
        if rank:
            return Result({}, [])
        return self._result({split: CodeStore(self.out / split) for split in splits})

    def _variants(self, split: Split) -> Variants:
        return self.variants if split == "train" else Variants()

    def _plan(self, model: VQVAE2, splits: Sequence[Split]) -> Result:
        config = model.config
        layout = CodeLayout(config.num_embeddings, config.level_sizes)
        images: dict[str, int] = {}
        records: dict[str, int] = {}
        missing: dict[str, int] = {}
        for split in splits:
            source = open_images(
                self.source, split, config.image_channels, config.image_size, write=False
            )
            check_images("extract", model, source, split)
            images[split] = len(source)
            records[split] = self._variants(split).count * len(source)
            missing[split] = sum(
                stop - first for first, stop in missing_records(self.out / split, records[split])
            )
        return plan_of_extraction(
            model, layout, images=images, records=records, missing=missing, out=self.out
        )

    def _check_fresh(self, splits: Sequence[Split]) -> None:
        for split in splits:
            if (self.out / split / MANIFEST).exists():
                raise ValueError(
                    f"--out: {self.out / split} holds codes already. Add --resume to go on with "
                    "them, or name another folder."
                )

    def _result(self, stores: dict[Split, CodeStore]) -> Result:
        values: dict[str, Any] = {"codes": str(self.out)}
        lines = []
        for split, store in stores.items():
            use = use_of_codes(store)
            values["checkpoint_hash"] = store.checkpoint_hash
            values[split] = {
                "records": len(store),
                "codes_used": {level: used.used for level, used in use.items()},
                "perplexity": {level: used.perplexity for level, used in use.items()},
            }
            shown = ", ".join(f"{level} {used.used}" for level, used in use.items())
            lines.append(
                f"{split}: {len(store)} records in {self.out / split}; codes used of "
                f"{store.num_embeddings}: {shown}"
            )
        write_result(self.out / "result.json", values)
        return Result(values, lines)


def use_of_codes(store: CodeStore) -> dict[str, CodebookUse]:
    """How much of its codebook each level of a store uses, by the level's name."""
    return {
        level: codebook_use(
            (maps[number] for maps, _ in codes_in_order(store, _STEP)), store.num_embeddings
        )
        for number, level in enumerate(level_names(len(store.level_sizes)))
    }


@contextmanager
def _ranks() -> Iterator[tuple[int, int]]:
    """The rank of this process and their number, as torchrun says; all leave the block together."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    # The default of half an hour is how long one rank may wait for the slowest.
    distributed.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield distributed.get_rank(), distributed.get_world_size()
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
