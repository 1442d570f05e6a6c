"""Which public members of vector-quantize-pytorch `compat.lucidrains` has, and how code asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import vector_quantize_pytorch as package

from vqvae2_fast.compat import lucidrains
from vqvae2_fast.compat.lucidrains import arguments, residual_vq

DOCS = Path(__file__).parents[2] / "docs"
SEVERAL = {"codebook_size": 16, "num_quantizers": 2}
BUILT = {
    "VectorQuantize": {"dim": 4, "codebook_size": 16},
    "ResidualVQ": {"dim": 4, **SEVERAL},
    "GroupedResidualVQ": {"dim": 4, "groups": 2, **SEVERAL},
    "FSQ": {"levels": [5, 5]},
    "ResidualFSQ": {"levels": [5, 5], "num_quantizers": 2},
    "GroupedResidualFSQ": {"dim": 4, "groups": 2, "levels": [5, 5], "num_quantizers": 2},
    "LFQ": {"dim": 4},
    "ResidualLFQ": {"dim": 4, **SEVERAL},
    "GroupedResidualLFQ": {"dim": 8, "groups": 2, **SEVERAL},
    "SimVQ": {"dim": 4, "codebook_size": 16},
    "ResidualSimVQ": {"dim": 4, **SEVERAL},
    "RandomProjectionQuantizer": {"dim": 4, "codebook_size": 16, "codebook_dim": 2},
}


def test_the_page_of_quantisers_lists_all_that_is_left_out():
    section = (DOCS / "quantizers.md").read_text("utf-8").split("## Drop-ins")[1]
    tables = (
        lucidrains._LEFT_OUT,
        arguments.OTHER_ARGUMENTS,
        arguments.FORWARD_ARGUMENTS,
        residual_vq._OTHER_ARGUMENTS,
        residual_vq._FORWARD,
    )
    assert [name for table in tables for name in table if name not in section] == []


@pytest.mark.parametrize("name", BUILT)
def test_the_migration_page_lists_the_members_that_are_left_out(name):
    page = (DOCS / "migrating-from-lucidrains.md").read_text("utf-8")
    theirs, ours = (getattr(source, name)(**BUILT[name]) for source in (package, lucidrains))
    public = [member for member in dir(theirs) if not member.startswith("_")]
    missing = [each for each in public if hasattr(theirs, each) and not hasattr(ours, each)]
    # Attributes have the names of arguments.
    refused = residual_vq._OTHER_ARGUMENTS | arguments.OTHER_ARGUMENTS
    assert [each for each in missing if f"`{each}`" not in page and each not in refused] == []
