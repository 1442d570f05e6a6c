"""Results as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from vqvae2_fast.metrics.results import as_json


@dataclass(frozen=True)
class Some:
    value: float
    maybe: float | None
    optional: float | None = None


def test_only_fields_that_are_none_by_default_are_left_out():
    assert as_json(Some(1.0, None)) == {"value": 1.0, "maybe": None}
    assert as_json(Some(1.0, 2.0, 3.0)) == {"value": 1.0, "maybe": 2.0, "optional": 3.0}


def test_numbers_that_json_does_not_have_become_null():
    values = as_json({"all": [Some(math.inf, math.nan)], "text": ("a", 1, True)})
    assert values == {"all": [{"value": None, "maybe": None}], "text": ["a", 1, True]}
    json.dumps(values, allow_nan=False)
