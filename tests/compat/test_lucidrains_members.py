"""Which public members of vector-quantize-pytorch `compat.lucidrains` has, and how code asks."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as package

from vqvae2_fast.compat import lucidrains
from vqvae2_fast.testing.drop_ins import assert_near


def test_code_can_ask_whether_a_class_is_there():
    assert not hasattr(lucidrains, "FSP")
    assert getattr(lucidrains, "FSP", None) is None


@pytest.mark.parametrize("error", [NotImplementedError, ImportError])
def test_importing_a_class_that_is_left_out_says_why(error):
    with pytest.raises(error, match="FSP is not supported: .* nearest"):
        from vqvae2_fast.compat.lucidrains import FSP  # noqa: F401
