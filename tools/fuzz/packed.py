"""The target `packed`: files of `pack`, whose damage also reaches a draw."""

from __future__ import annotations

import json
import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from vqvae2_fast import sample_codes
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import interface_of, plan_of
from vqvae2_fast.sampling.engines.cpu import weights_of
from vqvae2_fast.sampling.engines.cpu_file import packed_name, write_packed
from vqvae2_fast.sampling.engines.cpu_pack import described_plan
from vqvae2_fast.testing.priors import prior_inputs, tiny_prior

if TYPE_CHECKING:
    from pathlib import Path

    from vqvae2_fast.models.prior import Prior

__all__ = ["MAKE", "read_packed", "seal_packed"]

_ENGINES = ("cpu", "cpu_bfloat16", "cpu_int8")
_PAGE = 4096  # of the header


@cache
def _prior() -> Prior:
    return tiny_prior(num_classes=3, condition_sizes=((2, 3),))


def _make(folder: Path) -> None:
    prior = _prior()
    plan = plan_of(prior, interface_of(prior))
    for engine in _ENGINES:
        description = described_plan(plan, weights_of(engine, prior, plan))
        write_packed(folder / packed_name(engine), description, _native.module, 1)


MAKE = (_make,)


def read_packed(folder: Path, out: Path) -> None:
    """Draws from each file. Of one that is left aside a warning tells, which is raised here."""
    prior = tiny_prior(num_classes=3, condition_sizes=((2, 3),))
    prior.loaded_from = folder
    inputs = prior_inputs(prior, 2)
    context = {"condition": inputs["condition"], "labels": inputs["labels"]}
    refusals = []
    for engine in _ENGINES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                codes = sample_codes(prior, 2, engine=engine, top_k=5, top_p=0.9, **context)
            assert 0 <= int(codes.min()) <= int(codes.max()) < prior.config.num_embeddings
        except RuntimeWarning as warning:
            refusals.append(str(warning))
        except ValueError as error:  # of logits that are not finite
            refusals.append(f"{folder / packed_name(engine)}: {error}")
    if refusals:
        raise ValueError(refusals[0])


def seal_packed(folder: Path) -> None:
    """Corrects the hash of the words, which damage would otherwise always be refused by."""
    assert _native.module is not None
    for path in folder.glob("packed-*"):
        content = path.read_bytes()
        words = np.frombuffer(content[_PAGE:], np.uint8)
        try:
            header = json.loads(content[8:_PAGE])
            (value,) = _native.module.content_hashes([(words.ctypes.data, words.nbytes)], 1)
            header["__metadata__"]["words_hash"] = f"{value:016x}"
        except (ValueError, LookupError, TypeError):
            continue
        text = json.dumps(header).encode().ljust(_PAGE - 8)
        path.write_bytes(content[:8] + text + content[_PAGE:])
