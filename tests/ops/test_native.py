"""The compiled module: what is said where it cannot be loaded."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from vqvae2_fast.ops import _native


def last_line_of_failing_import(preparation: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{preparation}\nimport vqvae2_fast.ops"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


TOO_OLD = "vqvae2_fast: expected PyTorch 2.11 or later, found {}: pip install -U 'torch>=2.11'"


def test_a_torch_that_is_too_old_is_refused_in_one_sentence():
    said = last_line_of_failing_import("import torch; torch.__version__ = '2.10.1+cu126'")
    assert said == "ImportError: " + TOO_OLD.format("2.10.1+cu126")


MAP, ROWS = torch.zeros(2, 4, 3, 3), torch.zeros(5, 4)
SEED = torch.zeros(2, dtype=torch.int64)
NUMBERS = torch.arange(3)
WIDE, KERNEL = torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 3, 3)
NO_CHANNELS, FROM_NONE = WIDE[:, :0], KERNEL[:, :0]
REST = (False, 0.0, None)  # of `normed_conv2d`: elu, dropout_p, seed


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gumbel_noise", (NUMBERS.int(), NUMBERS, 8, 0, 0)),
        ("gumbel_noise", (NUMBERS, NUMBERS, 0, 0, 0)),
        ("nearest_code", (torch.zeros(9, 0), torch.zeros(3, 0))),
        ("vector_quantize", (torch.zeros(1, 0), torch.zeros(3, 0))),
        ("dropped_attention", (*[MAP.half()] * 3, 0.1, "logits", SEED)),
        ("dropped_attention", (*[MAP] * 3, 1 - 1e-9, "logits", SEED)),
        ("normed_conv2d", (NO_CHANNELS, FROM_NONE, None, None, 1, 1, 3, True, 0.0, None)),
        ("normed_conv2d", (WIDE, KERNEL[:0], None, None, 1, 1, 3, *REST)),
        ("normed_conv2d", (WIDE, KERNEL, None, None, -40, 1, 3, *REST)),
        ("normed_conv2d", (WIDE, KERNEL, None, None, 1, 4, 3, *REST)),
        ("normed_conv2d", (WIDE, KERNEL, None, None, 1, 1, 0, *REST)),
        ("normed_conv2d", (WIDE, KERNEL[:, :, :1, :1], None, None, 1, 0, 1, *REST)),
        ("normed_conv2d_backward", (WIDE, NO_CHANNELS, FROM_NONE, None, 1, 1, 3, *REST)),
        ("normed_conv2d_backward", (WIDE[:, :0], WIDE, KERNEL[:0], None, 1, 1, 3, *REST)),
        ("normed_conv2d_backward", (WIDE, WIDE, KERNEL, None, -40, 1, 3, *REST)),
        ("normed_conv2d_backward", (WIDE, WIDE, KERNEL[:, :, :1, :1], None, 0, 0, 0, *REST)),
        ("stride2_conv2d", (NO_CHANNELS, torch.zeros(16, 0, 4, 4), None, False)),
        ("stride2_conv2d", (NO_CHANNELS, torch.zeros(0, 16, 4, 4), None, True)),
        ("patch_conv2d", (WIDE, KERNEL[:, :3], None, 1, 1, 1, 3, False)),
        ("patch_conv2d", (NO_CHANNELS, FROM_NONE, None, 1, 1, 1, 3, False)),
        ("patch_conv2d", (WIDE, KERNEL[:, :, 1:], None, 1, 1, 1, 3, False)),
        ("patch_conv2d", (WIDE, KERNEL, None, 0, 1, 1, 3, False)),
        ("patch_conv2d", (WIDE, KERNEL, None, 3, 1, 1, 3, False)),
        ("patch_conv2d", (WIDE, KERNEL, None, 1, -1, 1, 3, False)),
        ("patch_conv2d", (WIDE, KERNEL, None, 1, 1, 4, 3, False)),
        ("patch_conv2d", (WIDE, KERNEL[:, :, :1, :1], None, 1, 0, 0, 0, False)),
        ("patch_conv2d_backward", (WIDE[:, :, 1:], WIDE, KERNEL, 1, 1, 1, 3, False, True)),
    ],
)
def test_compiled_operators_refuse_what_their_functions_do_not_pass_on(name, arguments):
    with pytest.raises(RuntimeError, match="expected"):
        getattr(torch.ops.vqvae2_fast, name)(*arguments)


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
@pytest.mark.parametrize("index", [-1, 7])
def test_an_index_outside_the_codebook_is_named(index):
    indices = torch.tensor([[0], [index], [6]])
    arguments = (ROWS[:3], torch.ones(1), ROWS[:3], torch.zeros(1, 7, 4), indices)
    with pytest.raises(RuntimeError, match=f"indices from 0 to below 7, got {index}"):
        torch.ops.vqvae2_fast.residual_nearest_code_backward(*arguments)


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "nearest_code",
            (ROWS, ROWS.double()),
            "expected codebook float32, bfloat16 or float16, got Double",
        ),
        (
            "normed_conv2d",
            (WIDE, KERNEL, None, torch.zeros(5), 1, 1, 3, *REST),
            r"expected bias float32 \[C_out\] with C_out=16, got 5 values of Float",
        ),
        (
            "stride2_conv2d",
            (WIDE, torch.zeros(32, 16, 4, 4), torch.zeros(32).double(), False),
            r"expected bias float32 \[C_out\] with C_out=32, .* of Double",
        ),
        (
            "patch_conv2d",
            (WIDE, KERNEL, torch.zeros(3), 1, 1, 1, 3, False),
            r"expected bias float32 \[C_out\] with C_out=16, got 3 values",
        ),
    ],
)
def test_a_refusal_names_the_argument(name, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.vqvae2_fast, name)(*arguments)


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
@pytest.mark.parametrize(
    ("name", "arguments", "sizes"),
    [
        ("gumbel_noise", (torch.arange(1), torch.arange(1), 2 * 10**14, 0, 0), "1, 1, 2"),
        (
            "normed_conv2d",
            (torch.zeros(()).expand(2**22, 4, 2**10, 2**10), torch.zeros(64, 4, 3, 3))
            + (None, None, 1, 1, 3, False, 0.0, None, False),
            "4194304, 64, 1024, 1024",
        ),
    ],
    ids=["gumbel_noise", "normed_conv2d"],
)
def test_a_result_that_has_no_memory_is_named(name, arguments, sizes):
    with pytest.raises(RuntimeError, match=rf"can't allocate memory for a tensor \[{sizes}"):
        getattr(torch.ops.vqvae2_fast, name)(*arguments)


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
def test_a_kernel_without_memory_says_so():
    # Copies of these heads would take more than all addresses there are.
    q = torch.zeros(()).expand(1, 1, 2**30, 2**20)
    with pytest.raises(RuntimeError, match="can't allocate memory .* smaller batch"):
        torch.ops.vqvae2_fast.dropped_attention(q, q, q[..., :0], 0.5, "logits", SEED)


def test_versions_are_compared_as_numbers():
    for version in ("2.11.0", "2.100.0a0+git", "3.0", "10.2"):
        _native._check_torch(version)
    for version in ("2.10.1+cu126", "1.13.0", "2.9.0"):
        with pytest.raises(ImportError, match=re.escape(TOO_OLD.format(version))):
            _native._check_torch(version)


def test_a_module_for_another_machine_is_refused_in_one_sentence(tmp_path):
    """As the loader refuses a wheel whose processor, C library or PyTorch is another."""
    path = tmp_path / "_C.so"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(57))
    said = last_line_of_failing_import(f"""
import importlib.machinery, importlib.util, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "vqvae2_fast._C":
            loader = importlib.machinery.ExtensionFileLoader(name, {str(path)!r})
            return importlib.util.spec_from_loader(name, loader)

sys.meta_path.insert(0, Finder)
""")
    assert said.startswith(
        "ImportError: vqvae2_fast: the compiled module was built for another system, processor or "
        f"PyTorch and does not load here ({path}: "
    )
    assert said.endswith("build it on this machine with `pip install .` from the source tree.")
