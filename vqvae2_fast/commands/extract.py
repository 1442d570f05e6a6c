"""`vqvae2-fast extract`: images to code maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vqvae2_fast.commands.common import (
    Command,
    Result,
    check_out,
    load_vqvae,
    write_result,
)
from vqvae2_fast.commands.plan import plan_of_extraction
from vqvae2_fast.console import Progress
from vqvae2_fast.data import CodeStore
from vqvae2_fast.data.code_format import MANIFEST, CodeLayout
from vqvae2_fast.data.sources import DataOptions, open_splits
from vqvae2_fast.metrics.codes import use_of_codes
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.extraction import (
    SHARD_RECORDS,
    Variants,
    extract_codes,
    missing_records,
)
from vqvae2_fast.training.images import check_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vqvae2_fast.data import ImageSource, Split
    from vqvae2_fast.models.vqvae2 import VQVAE2

__all__ = ["Extract"]


@dataclass(kw_only=True)
class Extract(Command):
    """Encode images with a trained VQ-VAE into the code stores OUT/train and OUT/held_out.

    Under torchrun the processes share the work. --flip and --copies add records to the training
    store only.
    """

    vqvae: Path
    """Folder of a VQ-VAE's run, a checkpoint of one, or a pipeline."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    variants: Annotated[Variants, tyro.conf.arg(name="")] = field(default_factory=Variants)
    words: tuple[str, ...] = ()
    """Parts of the images, such as glasses and hair of avatars, which the priors are then told by
    words such as "glasses=variant01". For sources whose images have attributes."""
    out: Path = Path("runs/codes")
    """Folder for the two stores."""
    resume: bool = False
    """Continue an extraction into --out that was interrupted."""
    dry_run: bool = False
    """Check the images against the model and print what the extraction would take; write
    nothing."""
    shard_records: int = SHARD_RECORDS
    """Records that are saved together: what an interruption costs at most."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""

    def run(self) -> Result:
        ranks = Ranks.of_this_run()
        model = load_vqvae(self.vqvae, ranks.device(self.prepare()))
        config = model.config
        self.variants.check_shift(config.image_size)
        splits: tuple[Split, ...] = ("train", "held_out")
        # No process writes before the first one has seen what is there.
        ranks.run_on_rank0_and_broadcast(lambda: self._check_out(splits))
        progress = Progress(quiet=self.quiet or ranks.rank > 0)
        sources = ranks.rank0_first(
            lambda: open_splits(
                self.source,
                splits,
                config.image_channels,
                config.image_size,
                progress,
                write=not self.dry_run,
            )
        )
        if ranks.rank == 0:
            plan = self._plan(model, sources)
            if self.dry_run:
                return plan
            progress.say("\n".join(plan.lines[2:-3]))
        elif self.dry_run:
            return Result({}, [])
        for split, images in sources.items():
            extract_codes(
                model,
                images,
                self.out / split,
                variants=self._variants(split),
                words=self.words,
                rank=ranks.rank,
                world_size=ranks.count,
                shard_records=self.shard_records,
                workers=self.workers,
                progress=progress,
                name=f"extract {split}",
            )
        ranks.first_waits()
        if ranks.rank:
            return Result({}, [])
        return self._result({split: CodeStore(self.out / split) for split in splits})

    def _variants(self, split: Split) -> Variants:
        return self.variants if split == "train" else Variants()

    def _plan(self, model: VQVAE2, sources: Mapping[Split, ImageSource]) -> Result:
        config = model.config
        records, missing = {}, {}
        for split, images in sources.items():
            check_images(model, images, split)
            records[split] = self._variants(split).count * len(images)
            missing[split] = sum(
                stop - first for first, stop in missing_records(self.out / split, records[split])
            )
        return plan_of_extraction(
            model,
            CodeLayout(config.num_embeddings, config.level_sizes),
            sources["train"],
            images={split: len(images) for split, images in sources.items()},
            records=records,
            missing=missing,
            out=self.out,
        )

    def _check_out(self, splits: Sequence[Split]) -> None:
        check_out(self.out, self.source)
        if self.resume:
            return
        for split in splits:
            if (self.out / split / MANIFEST).exists():
                raise ValueError(
                    f"--out: {self.out / split} holds codes already. Add --resume to continue "
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
