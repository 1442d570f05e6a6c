"""`vqvae2-fast pack`: weights as engines of the CPU need them, in files beside the priors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import Annotated, Literal

import tyro

from vqvae2_fast.checkpoints.packed import pack
from vqvae2_fast.commands.common import Command, Result

__all__ = ["Pack"]


@dataclass(kw_only=True)
class Pack(Command):
    """Write the weights of priors as an engine of the CPU needs them, into their checkpoints.

    The first draw from a prior then maps the file in place of packing the weights, and several
    processes share one copy. The files are about as large as the priors.
    """

    path: Annotated[Path, tyro.conf.Positional]
    """A pipeline, or a run or checkpoint of a prior."""
    engine: Literal["cpu", "cpu_bfloat16", "cpu_int8", "cpu_w8a8"] = "cpu"
    """The engine that will draw. cpu_w8a8 needs priors that `calibrate` has measured."""

    def run(self) -> Result:
        self.check_one_process()
        self.prepare_on_cpu()
        files = pack(self.path, self.engine)
        sizes = {str(file): file.stat().st_size for file in files}
        return Result(
            {"files": sizes},
            [f"{file}: {size / 1e6:,.1f} MB" for file, size in sizes.items()],
        )
