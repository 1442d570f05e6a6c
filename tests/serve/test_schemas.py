"""Requests of the wrong form: how many errors are gathered before one of them is shown."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vqvae2_fast.serve import schemas

MANY = 10_000


@pytest.mark.parametrize(
    ("model", "request_"),
    [
        (schemas.ImagesRequest, {"known": [[[-2] * MANY], None]}),
        (schemas.ImagesRequest, {"known": [[[-2]] * MANY, None]}),
        (schemas.ImagesRequest, {"known": ["x"] * MANY}),
        (schemas.FillRequest, {"source": {}, "mask": [[0] * MANY]}),
        (schemas.FillRequest, {"source": {}, "code_masks": [[[0]] * MANY]}),
        (schemas.FillRequest, {"source": {"codes": [[[-2]] * MANY]}}),
        (schemas.CrossRequest, {"sources": ["x"] * MANY}),
        (schemas.DecodeRequest, {"codes": ["x"] * MANY}),
        (schemas.DrawRequest, {"temperature": [-1] * MANY}),
        (schemas.DrawRequest, {"temperature": [1] * MANY}),
        (schemas.DrawRequest, {str(n): 0 for n in range(MANY)}),
    ],
)
def test_errors_do_not_grow_with_the_request(model, request_):
    with pytest.raises(ValidationError) as refused:
        model.model_validate(request_)
    assert refused.value.error_count() < 20
