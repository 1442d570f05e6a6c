"""Imports the package on an emulated processor and compares the search with its reference."""

import sys

import torch

from vqvae2_fast import ops
from vqvae2_fast.ops.nearest_code.op import nearest_code_reference

EXPECTED = {"Nehalem": "cpu:scalar", "Haswell": "cpu:avx2"}

generator = torch.Generator().manual_seed(0)
z, codebook = torch.randn(40, 16, generator=generator), torch.randn(33, 16, generator=generator)
indices, sqdist = ops.nearest_code(z, codebook)
expected_indices, expected_sqdist = nearest_code_reference(z, codebook)
assert torch.equal(indices, expected_indices)
assert torch.equal(sqdist, expected_sqdist)
owner = ops.owner("nearest_code", z, codebook)
assert owner == EXPECTED[sys.argv[1]], owner
print(f"{sys.argv[1]}: {owner}, equal to the reference")
