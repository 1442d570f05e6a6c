"""Triton kernels: who runs them, with which configuration, and what they promise beyond the cases
of `test_conformance.py`. Tests that run a kernel need `TRITON_INTERPRET=1` (see `.ci/triton`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile

import pytest
import torch

from vqvae2_fast import ops
from vqvae2_fast.ops import _triton
from vqvae2_fast.ops._registry import OPERATORS, TRITON_LAUNCHERS
from vqvae2_fast.testing.interpreter import interpret_on_cpu

if _triton.INTERPRETED:
    interpret_on_cpu()
interpreted = pytest.mark.skipif(
    not _triton.INTERPRETED, reason="runs under TRITON_INTERPRET=1, as .ci/triton does"
)


def test_importing_the_package_does_not_import_triton():
    code = "import sys, vqvae2_fast.ops; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tempfile.gettempdir(), check=True)


def test_unknown_architecture_takes_the_row_of_the_one_before():
    table = _triton._CONFIGURATIONS["gumbel_noise"]
    assert _triton._configuration("gumbel_noise", "sm_89") == table["sm_80"]


def test_every_amd_architecture_takes_the_row_of_gfx942():
    table = _triton._CONFIGURATIONS["gumbel_noise"]
    assert _triton._configuration("gumbel_noise", "gfx1100") == table["gfx942"]


@pytest.mark.skipif(_triton.INTERPRETED, reason="there Triton runs on the CPU")
def test_processors_are_refused():
    reason = _triton.why_not_triton(torch.device("cpu"))
    assert reason in ("triton is not installed", "Triton kernels do not run on cpu")


def test_missing_triton_is_told(monkeypatch):
    monkeypatch.setattr(_triton, "_HAS_TRITON", False)
    assert _triton.why_not_triton(torch.device("cuda")) == "triton is not installed"


@interpreted
def test_every_interpreted_operator_is_owned_by_triton():
    for name in ("gumbel_noise", "dropout_mask", "ema_update_", "code_statistics"):
        assert OPERATORS[name].owners["cpu"] == "triton"
        assert name in TRITON_LAUNCHERS


@interpreted
def test_index_outside_is_an_error():
    with pytest.raises(RuntimeError, match=r"expected indices in 0\.\.3, got one outside"):
        ops.code_statistics(torch.zeros(2, 3), torch.tensor([0, 4]), 4)


@interpreted
def test_failed_launch_names_kernel_and_shapes():
    from vqvae2_fast.ops.dropout_mask.triton import _dropout_mask_kernel

    with pytest.raises(RuntimeError, match=r"_dropout_mask_kernel: the launch of \[1\] programs"
                       r" on \[\] int64 on cpu, \[3\] uint8 on cpu failed"):  # fmt: skip
        _triton.launch(
            _dropout_mask_kernel, (1,), torch.tensor(1), torch.zeros(3, dtype=torch.uint8),
            1, 1, 3, 0.5, BLOCK=3,
        )  # fmt: skip


@interpreted
@pytest.mark.parametrize("condition", [None, "map", "vector"])
def test_gate_takes_channels_last(condition):
    generator = torch.Generator().manual_seed(0)
    h, x = torch.randn(2, 6, 3, 5, generator=generator), torch.randn(2, 3, 3, 5)
    size = {None: None, "map": (3, 5), "vector": (1, 1)}[condition]
    added = None if size is None else torch.randn(2, 6, *size, generator=generator)
    expected = ops.gated_residual(h, x, added)
    actual = ops.gated_residual(
        h.contiguous(memory_format=torch.channels_last),
        x.contiguous(memory_format=torch.channels_last),
        added,
    )
    assert torch.equal(actual, expected)
    assert actual.is_contiguous(memory_format=torch.channels_last)
