"""What a command frees stays with its process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest


def keeps_memory() -> bool:
    library, version = platform.libc_ver()
    return library == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 38)


FEWEST_FAULTS = """
import resource
import torch
from vqvae2_fast.commands.common import Command

{setting}
found = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**26, dtype=torch.uint8).fill_(1)  # and is freed
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(found[1:]))
"""


@pytest.mark.skipif(not keeps_memory(), reason="only glibc 2.38 and later keeps it")
@pytest.mark.parametrize(
    ("setting", "kept"),
    [("Command().prepare()", True), ("Command().prepare(keep_memory=False)", False)],
)
def test_large_tensors_begin_without_page_faults_in_a_command(setting, kept, tmp_path):
    others = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    said = subprocess.run(
        [sys.executable, "-c", FEWEST_FAULTS.format(setting=setting)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(others)},
        check=True,
        capture_output=True,
        text=True,
    )
    # 64 MiB are 16,384 pages, or 32 where the system gives huge ones unasked.
    assert (int(said.stdout) < 16) == kept
