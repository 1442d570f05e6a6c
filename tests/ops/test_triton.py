"""Triton kernels: who runs them, with which configuration, and what they promise beyond the cases
of `test_conformance.py`. Tests that run a kernel need `TRITON_INTERPRET=1` (see `.ci/triton`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch
from helpers.interpreter import interpret_on_cpu

from vqvae2_fast import ops
from vqvae2_fast.ops import _triton
from vqvae2_fast.ops._registry import BY_DESIGN, OPERATORS, TRITON_LAUNCHERS
from vqvae2_fast.ops.causal_conv2d.op import CAUSAL_CONV2D
from vqvae2_fast.ops.gumbel_noise.op import uniform_from_words
from vqvae2_fast.ops.nearest_code.op import nearest_code_reference

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
    for name in (
        "gumbel_noise",
        "dropout_mask",
        "ema_update_",
        "code_statistics",
        "draw_codes",
        "residual_nearest_code",
        "residual_code_statistics",
    ):
        assert OPERATORS[name].owners["cpu"] == "triton"
        assert name in TRITON_LAUNCHERS


@interpreted
def test_index_outside_is_an_error():
    with pytest.raises(RuntimeError, match=r"expected indices in 0\.\.3, got one outside"):
        ops.code_statistics(torch.zeros(2, 3), torch.tensor([0, 4]), 4)


@interpreted
def test_failed_launch_names_kernel_and_shapes():
    from vqvae2_fast.ops.dropout_mask.triton import _dropout_mask_kernel

    with pytest.raises(
        RuntimeError,
        match=r"_dropout_mask_kernel: the launch of \[1\] programs"
        r" on \[\] int64 on cpu, \[3\] uint8 on cpu failed",
    ):
        _triton.launch(
            _dropout_mask_kernel,
            (1,),
            torch.tensor(1),
            torch.zeros(3, dtype=torch.uint8),
            1,
            1,
            3,
            0.5,
            BLOCK=3,
        )


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


@interpreted
def test_attention_is_owned_where_logits_are_dropped():
    q, seed = torch.zeros(1, 2, 5, 4), torch.tensor(1)
    operator = OPERATORS["causal_attention"]
    assert operator.owner(q, q, q, 0.1, "logits", seed) == "triton"
    assert operator.owner(q, q, q, 0.0, "logits", None) == "reference"
    reason = operator.owner(q, q, q, 0.1, "probabilities", seed)
    assert reason == "reference: dropout on probabilities"


@interpreted
def test_wide_heads_are_left_to_the_reference():
    q, seed = torch.zeros(1, 1, 3, 65), torch.tensor(1)
    reason = OPERATORS["causal_attention"].owner(q, q, q, 0.1, "logits", seed)
    assert reason == "reference: heads of 65 and 65 values, more than 64 or none"
    assert OPERATORS["causal_attention"].owner(*[q.half()] * 3, 0.1, "logits", seed) == "triton"


@interpreted
@pytest.mark.parametrize("dropout_p", [0.1, 0.3, 0.5, 1 / 3, 2.0**-23, 1 - 2.0**-23])
def test_word_that_is_kept_is_the_one_whose_uniform_is(dropout_p):
    from vqvae2_fast.ops.causal_attention.triton_tiles import least_kept_word

    threshold = least_kept_word(dropout_p)
    words = torch.tensor([threshold - 1, threshold]).clamp(min=0)
    kept = uniform_from_words(words) >= dropout_p
    assert kept.tolist() == [threshold == 0, True]


def assert_search_is_exact(z, codebook):
    expected_indices, expected_sqdist = nearest_code_reference(z, codebook)
    indices, sqdist = OPERATORS["nearest_code"](z, codebook)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(sqdist, expected_sqdist)


@interpreted
def test_codes_around_a_midpoint():
    """Vectors within a few ulp of the midpoint of two codes: no screen can decide."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(64, 16, generator=generator)
    pairs = torch.randint(64, (300, 2), generator=generator)
    middle = codebook[pairs].double().mean(dim=1)  # [300, D]
    nudge = torch.randint(-3, 4, middle.shape, generator=generator) * 2.0**-24
    assert_search_is_exact((middle * (1 + nudge)).float(), codebook)


@interpreted
def test_midpoints_far_from_the_origin():
    generator = torch.Generator().manual_seed(1)
    codebook = torch.randn(50, 8, generator=generator) * 1e-3 + 100
    pairs = torch.randint(50, (200, 2), generator=generator)
    assert_search_is_exact(codebook[pairs].mean(dim=1), codebook)


@interpreted
def test_norms_over_the_whole_range():
    generator = torch.Generator().manual_seed(2)
    scale = 10.0 ** torch.randint(-38, 38, (90, 1), generator=generator)
    z = torch.randn(90, 6, generator=generator) * scale
    codebook = (torch.randn(60, 6, generator=generator) * scale[:60]).clamp(-3e38, 3e38)
    assert_search_is_exact(z, codebook)


@interpreted
@pytest.mark.parametrize("counted", [True, False])
def test_errors_of_screened_codes_count_in_the_band(monkeypatch, counted):
    """Codes rounded to quarters: exact if the band allows for the rounding, wrong if it does
    not."""
    from vqvae2_fast.ops.nearest_code import triton as kernels
    from vqvae2_fast.ops.nearest_code.triton_codebook import PARTS

    centre = kernels.centre_codebook

    def coarse(*args):
        halves, mean, facts, extremes = centre(*args)
        rounded = halves.clone()
        codes = rounded[:, : -PARTS.value]
        codes.copy_((codes * 4).round() / 4)
        if counted:
            extremes[1].add_((halves - rounded).float().norm(dim=1).max())
        return rounded, mean, facts, extremes

    monkeypatch.setattr(kernels, "centre_codebook", coarse)
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(64, 16, generator=generator), torch.randn(64, 16, generator=generator)
    indices, _ = OPERATORS["nearest_code"](z, codebook)
    assert torch.equal(indices, nearest_code_reference(z, codebook)[0]) == counted


def conv_inputs(channels=32, dtype=torch.float32):
    """Stand-ins for tensors on a GPU: the predicate looks at nothing else."""
    x = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(1, channels, 8, 8))
    return x, torch.zeros(2 * channels, channels, 5, 5)


@pytest.mark.parametrize(
    ("capability", "tf32", "inputs", "left"),
    [
        ((9, 0), False, conv_inputs(), False),
        ((9, 0), True, conv_inputs(), True),
        ((9, 0), False, conv_inputs(dtype=torch.bfloat16), True),
        ((9, 0), False, conv_inputs(channels=16), True),
        ((12, 0), False, conv_inputs(), True),
    ],
    ids=["float32", "tf32_allowed", "bfloat16", "few_channels", "slow_tensor_cores"],
)
def test_convolutions_are_owned_where_three_tf32_products_win(
    monkeypatch, capability, tf32, inputs, left
):
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        assert (CAUSAL_CONV2D.why_not(*inputs) is BY_DESIGN) == left


@pytest.mark.parametrize(
    ("target", "tf32", "expected"),
    [("sm_90", True, "tf32"), ("sm_90", False, "tf32x3"), ("gfx942", True, "ieee")],
)
def test_convolutions_use_tf32_only_where_pytorch_allows_it(target, tf32, expected):
    with (
        _triton.recording(target),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32),
    ):
        device = torch.device("cpu")
        assert _triton.convolution_precision(torch.float32, device) == expected
        assert _triton.convolution_precision(torch.bfloat16, device) == "ieee"


@pytest.fixture
def _precisions_return():
    """PyTorch's settings of TF32 are afterwards what they were, in both of its interfaces."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    matmul.fp32_precision, conv.fp32_precision = before


SETTERS = {
    "matmul.fp32_precision": (torch.backends.cuda.matmul, "fp32_precision", "tf32", "ieee"),
    "matmul.allow_tf32": (torch.backends.cuda.matmul, "allow_tf32", True, False),
    "conv.fp32_precision": (torch.backends.cudnn.conv, "fp32_precision", "tf32", "ieee"),
    "cudnn.allow_tf32": (torch.backends.cudnn, "allow_tf32", True, False),
}


@pytest.mark.usefixtures("_precisions_return")
@pytest.mark.parametrize("name", SETTERS)
def test_tf32_is_allowed_by_either_interface_of_pytorch(name):
    owner, attribute, *values = SETTERS[name]
    precision = _triton.dot_precision if "matmul" in name else _triton.convolution_precision
    for value, expected in zip(values, ("tf32", "tf32x3"), strict=True):
        setattr(owner, attribute, value)
        with _triton.recording("sm_90"):
            assert precision(torch.float32, torch.device("cpu")) == expected
            assert precision(torch.bfloat16, torch.device("cpu")) == "ieee"


@pytest.mark.usefixtures("_precisions_return")
def test_tf32_in_products_follows_the_precision_of_float32_products():
    for name, expected in (("high", "tf32"), ("highest", "tf32x3")):
        torch.set_float32_matmul_precision(name)
        with _triton.recording("sm_90"):
            assert _triton.dot_precision(torch.float32, torch.device("cpu")) == expected


@pytest.mark.usefixtures("_precisions_return")
def test_the_owner_of_a_convolution_is_found_after_fp32_precision_was_set(monkeypatch):
    properties = SimpleNamespace(major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    for value, left in (("tf32", True), ("ieee", False)):
        torch.backends.cudnn.conv.fp32_precision = value
        assert (CAUSAL_CONV2D.why_not(*conv_inputs()) is BY_DESIGN) == left


def test_a_compiler_takes_whether_convolutions_have_tf32_as_a_constant():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: x if _triton.convolutions_take_tf32() else -x, fullgraph=True, backend="eager"
    )
    assert compiled(torch.ones(1)) == (1 if _triton.convolutions_take_tf32() else -1)


@interpreted
def test_dead_taps_of_a_convolution_are_not_read():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 4, 5, 6, generator=generator), torch.randn(3, 4, 3, 3)
    expected = ops.causal_conv2d(x, weight, None, "exclude")
    spoilt = weight.masked_fill(~ops.tap_mask("exclude", 3, 3), torch.nan)
    assert torch.equal(ops.causal_conv2d(x, spoilt, None, "exclude"), expected)


@interpreted
def test_codes_out_of_range_add_nothing_to_a_code_convolution():
    codes = torch.tensor([[[0, 1], [-1, 7]]])
    table = torch.tensor([[[1.0], [10.0]]]).requires_grad_()
    out = ops.code_conv2d(codes, table, [(0, 0)])
    assert out.flatten().tolist() == [1.0, 10.0, 0.0, 0.0]
    out.sum().backward()
    assert table.grad.flatten().tolist() == [1.0, 1.0]


@interpreted
@pytest.mark.parametrize("top_k", [None, 2])
def test_draw_from_logits_that_are_not_numbers_is_in_range(top_k):
    logits = torch.full((1, 5), torch.nan)
    logits[0, 0] = 1.0
    codes, _ = ops.draw_codes(logits, torch.zeros(1, 5), top_k=top_k)
    assert codes.item() == logits.argmax().item() == 1


@interpreted
def test_wide_rows_of_logits_are_left_to_the_reference():
    logits = torch.zeros(1, 8193)
    reason = OPERATORS["draw_codes"].owner(logits, None, logits)
    assert reason == "reference: 8193 codes, more than 8192"
