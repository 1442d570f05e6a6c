"""What a command frees stays with its process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS_OF_A_TENSOR_THAT_FOLLOWS_A_FREED_ONE = """
import resource
import torch
from vqvae2_fast.commands.common import Command

{setting}
for _ in range(4):  # each frees the one before it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = torch.empty(2**26, dtype=torch.uint8).fill_(1)
    del tensor
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
@pytest.mark.parametrize(("setting", "kept"), [("Command().prepare()", True), ("", False)])
def test_large_tensors_begin_without_page_faults_in_a_command(setting, kept, tmp_path):
    code = FAULTS_OF_A_TENSOR_THAT_FOLLOWS_A_FREED_ONE.format(setting=setting)
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    # 64 MiB are 16,384 pages, or 32 where the system gives it huge ones unasked.
    assert (int(said.stdout) < 16) == kept
