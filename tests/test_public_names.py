"""The names that users rely on, with the signatures of the design."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tempfile

import pytest

import vqvae2_fast as vq2


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (vq2.ops.nearest_code, "z codebook"),
        (vq2.ops.vector_quantize, "z codebook"),
        (vq2.ops.code_statistics, "z indices num_embeddings"),
        (vq2.ops.ema_update_, "counts sums cluster_size embed_avg codebook decay epsilon"),
        (vq2.ops.causal_conv2d, "x weight bias mask"),
        (vq2.ops.gated_residual, "h x condition"),
        (vq2.ops.causal_attention, "q k v dropout_p dropout_on seed"),
        (
            vq2.VectorQuantizerEMA,
            "num_embeddings embedding_dim commitment_cost decay epsilon init "
            "ema_start restart gradient",
        ),
        (vq2.PixelSNAIL.forward, "self codes condition labels"),
        (
            vq2.sample_codes,
            "prior batch_size condition labels seed first_sample stream noise "
            "temperature top_k top_p guidance_scale known engine return_log_prob progress",
        ),
        (vq2.sample_images, "pipeline batch_size labels seed first_sample temperature"),
        (vq2.fill, "pipeline images mask candidates labels seed"),
        (vq2.stream_images, "pipeline count batch_size labels first_sample known progress"),
        (vq2.Pipeline, "vqvae priors"),
        (vq2.from_preset, "name"),
        (vq2.load, "path"),
        (vq2.save, "obj path"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_parameters_come_in_the_documented_order(function, parameters):
    actual = list(inspect.signature(function).parameters)
    assert actual[: len(parameters.split())] == parameters.split()


def test_importing_the_package_leaves_plotting_and_the_command_line_alone():
    code = "import sys, vqvae2_fast; print([m for m in ('matplotlib', 'tyro') if m in sys.modules])"
    # Run outside the source tree, whose package would shadow the installed one.
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tempfile.gettempdir(), capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
