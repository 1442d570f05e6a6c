"""What a notebook shows of models, quantisers and evaluations: short tables of their numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest
import torch
from helpers.models import tiny_pipeline

import vqvae2_fast as vq2
from vqvae2_fast.console.tables import html_table
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.metrics import evaluate_pipeline
from vqvae2_fast.modules import MultiHeadVQ, RandomProjectionQuantizer, VectorQuantizer


def cells(html: str) -> list[list[str]]:
    """The cells of all rows of all tables, headers included."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [[unescape(c) for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def shown(thing: object) -> list[list[str]]:
    return cells(thing._repr_html_())


def test_names_in_tables_are_escaped():
    html = html_table(("<b>",), [("<script>", "1 & 2"), ("met", "-3")])
    assert cells(html) == [["<b>"], ["<script>", "1 & 2"], ["met", "-3"]]
    assert "<script>" not in html
    assert '<td class="met">met</td><td class="number">-3</td>' in html


def test_an_empty_cell_is_no_number():
    assert "<td></td><td>x</td>" in html_table(("", ""), [("", "x")])


def test_a_quantiser_shows_how_its_codes_are_used():
    quantizer = vq2.VectorQuantizerEMA(1024, 4, restart=0)
    assert shown(quantizer)[1] == ["", "1,024", "4", "1", "1,020"]  # as many as are counted alike
    quantizer.cluster_size.zero_()[:3] = 5
    quantizer.eval()(quantizer.codebook[:2])
    assert shown(quantizer)[1] == ["", "1,024", "4", "2", "3"]


def test_a_quantiser_of_parts_shows_each_of_them():
    quantizer = vq2.ResidualVQ((8, 16), 4)
    quantizer.quantizers[1].cluster_size.zero_()[:5] = 1
    quantizer.eval()(torch.zeros(3, 4))
    assert shown(quantizer)[1:] == [
        ["", "8 × 16", "4", "1", ""],
        ["quantizers.0", "8", "4", "", "8"],
        ["quantizers.1", "16", "4", "", "5"],
    ]


@pytest.mark.parametrize(
    ("make", "codes"),
    [
        (lambda: VectorQuantizer(16, 6), "16"),
        (lambda: vq2.SimVQ(16, 6), "16"),
        (lambda: vq2.IBQ(16, 6), "16"),
        (lambda: vq2.FSQ([8, 5], 6), "40"),
        (lambda: vq2.LFQ(64), "64"),
        (lambda: vq2.BSQ(2**40), "1,099,511,627,776"),
        (lambda: vq2.GroupedResidualVQ(2, 8, 6, 2), "8 × 8"),
        (lambda: MultiHeadVQ(3, 8, 6), "8"),
        (lambda: vq2.ResidualFSQ([4, 3], 2, 6), "12 × 12"),
        (lambda: RandomProjectionQuantizer(16, 6, 6), "16"),
    ],
    ids=[
        "gradient",
        "simvq",
        "ibq",
        "fsq",
        "lfq",
        "bsq",
        "grouped",
        "heads",
        "residual-fsq",
        "random-projection",
    ],
)
def test_every_quantiser_shows_its_number_of_codes(make, codes):
    assert shown(make())[1][1] == codes


def test_a_quantiser_without_numbers_can_be_shown():
    with torch.device("meta"):
        assert shown(vq2.VectorQuantizerEMA(16, 4))[1] == ["", "16", "4", "1", ""]


def test_a_pipeline_shows_its_levels_and_classes_in_a_few_lines():
    pipeline = tiny_pipeline()
    pipeline = replace(pipeline, recommended={"temperature": 0.9})
    pipeline.vqvae.quantizers[0].cluster_size.zero_()[:7] = 1
    top, bottom = shown(pipeline.vqvae)[1:]
    assert top == ["top", "4×4", "ema", "13", "7"]
    assert bottom == ["bottom", "8×8", "ema", "13", "13"]
    html = pipeline._repr_html_()
    assert html.startswith(pipeline.vqvae._repr_html_())
    of_priors = cells(html)[3:]
    assert of_priors[0] == ["map", "codes", "prior", "parameters"]
    for row, prior, size in zip(of_priors[1:], pipeline.priors, ("4×4", "8×8"), strict=True):
        weights = sum(weight.numel() for weight in prior.parameters())
        assert row == [size, "13", f"PixelSNAIL, {prior.config.summary()}", f"{weights:,}"]
    assert "Recommended: temperature 0.9." in html
    assert len(html) < 2000 < len(repr(pipeline))


def test_a_decoder_of_any_type_needs_no_table_of_its_own():
    pipeline = tiny_pipeline()

    class Decoder:
        def decode(self, codes):
            return pipeline.vqvae.decode(codes)

    assert cells(replace(pipeline, vqvae=Decoder())._repr_html_()) == shown(pipeline)[3:]


def test_an_evaluation_shows_what_the_codes_of_each_level_cost():
    images = ImageTensorDataset(torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8))
    pipeline = tiny_pipeline()
    found = evaluate_pipeline(*pipeline.networks(), images, codec_images=2)
    table = {name: values for name, *values in shown(found)}
    assert table[""] == ["top", "bottom"]
    assert table["codes"] == ["16", "64"]
    assert table["codes used"] == [str(found.levels[name].codes_used) for name in table[""]]
    assert "overfitting gap" not in table  # it was not measured
    assert f"reconstructed at {found.reconstruction.psnr:.2f} dB" in found._repr_html_()
