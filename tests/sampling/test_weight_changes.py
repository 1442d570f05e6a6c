"""Weights that change between draws; tools/draws_between_changes.py does many more."""

import pytest

from vqvae2_fast.ops import _native
from vqvae2_fast.testing.weight_changes import CHANGES, draws_between_changes

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)


def test_each_draw_is_from_the_weights_as_they_are():
    counts = draws_between_changes(120)
    # Equal values in another tensor draw the same codes.
    same = {"nothing", "a parameter replaced"}
    assert {name for name, count in counts.items() if count} == CHANGES.keys() - same
