"""The range coder of the compiled module, against constriction's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vqvae2_fast.ops import _native

constriction = pytest.importorskip("constriction")
TOTAL = 2**24


def frequencies(random: np.random.Generator, num_codes: int, sharpness: float) -> np.ndarray:
    weights = random.exponential(size=num_codes) ** sharpness
    found = np.floor(weights * ((TOTAL - num_codes) / weights.sum())).astype(np.int64) + 1
    found[found.argmax()] += TOTAL - found.sum()
    return found


def encoded(intervals: np.ndarray) -> np.ndarray:
    assert _native.module is not None
    data = _native.module.encode_intervals(torch.from_numpy(intervals.view(np.int32)))
    return np.frombuffer(data, np.uint32)


# Sharpness 12 gives symbols near probability 1, and runs of held words. Only likely symbols give
# streams of one or two words.
@pytest.mark.parametrize("sharpness", [1, 4, 12])
@pytest.mark.parametrize("likely", [True, False])
def test_streams_are_those_of_constriction(sharpness: float, likely: bool) -> None:
    random = np.random.default_rng(int(sharpness))
    for length in (0, 1, 2, 3, 50, 400):
        theirs: Any = constriction.stream.queue.RangeEncoder()
        intervals = np.zeros((length, 2), np.uint32)
        for i in range(length):
            counts = frequencies(random, int(random.integers(2, 600)), sharpness)
            chosen = random.choice(len(counts), p=counts / TOTAL if likely else None)
            intervals[i] = counts[:chosen].sum(), counts[chosen]
            model = constriction.stream.model.Categorical(
                (counts - 1).astype(np.float64), perfect=False
            )
            theirs.encode(int(chosen), model)
        assert np.array_equal(encoded(intervals), theirs.get_compressed())


def test_certain_symbols_cost_nothing() -> None:
    assert len(encoded(np.tile(np.array([[0, TOTAL]], np.uint32), (1000, 1)))) == 1
