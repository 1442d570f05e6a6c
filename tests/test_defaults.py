"""Calls give the same bits whatever dtype and device a program has made PyTorch's defaults.

Modules follow the defaults as PyTorch's own do, so here they are made before these are changed.
"""

from __future__ import annotations

import ast
import os
import random
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.cases import cases_of
from helpers.models import prior_inputs, tiny_pipeline, tiny_prior
from torch import Tensor

import vqvae2_fast
from vqvae2_fast import (
    calibrate,
    codec,
    fill,
    load,
    metrics,
    sample_codes,
    sample_images,
    save,
    score_codes,
    stream_images,
)
from vqvae2_fast.compat import lucidrains
from vqvae2_fast.data import CodeStore, CodeWriter, codes_in_order
from vqvae2_fast.modules import (
    BSQ,
    FSQ,
    IBQ,
    LFQ,
    GroupedResidualVQ,
    MultiHeadVQ,
    RandomProjectionQuantizer,
    ResidualFSQ,
    ResidualVQ,
    SimVQ,
    VectorQuantizer,
    VectorQuantizerEMA,
    VQBridge,
)
from vqvae2_fast.ops import OPERATORS, _native


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}
NATIVE = pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")
OTHER = pytest.mark.parametrize("default", DEFAULTS)


def assert_same(actual, expected):
    if isinstance(expected, Tensor):
        assert actual.device == expected.device
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, (list, tuple)):
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)
    else:
        assert actual == expected


def check(make, call, default):
    """`call` on what `make` gives, made before the default is set."""
    expected = call(*make())
    inputs = make()
    with DEFAULTS[default]():
        actual = call(*inputs)
    assert_same(actual, expected)


def some_cases_of(operator):
    """The first case of each set of dtypes."""
    found = {}
    for case in cases_of(operator):
        arguments = case.make(torch.Generator().manual_seed(0))
        found.setdefault(tuple(getattr(value, "dtype", value is None) for value in arguments), case)
    return found.values()


# int64 whatever the default dtype is.
WHOLE_NUMBERS = {"arange", "randint", "randperm"}
OF_ANY_DTYPE = {"as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace"}
OF_ANY_DTYPE |= {"ones", "rand", "randn", "tensor", "zeros"}


def follows_the_defaults(function):
    """Whether a function makes the parameters and buffers of a module, or the arguments with which
    a Triton kernel is compiled."""
    makes_them = re.search(r"register_buffer\(|nn\.Parameter\(", ast.unparse(function))
    return makes_them or function.name == "examples"


def calls_of(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and follows_the_defaults(child):
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from calls_of(child)


def lacks_dtype_or_device(call):
    owner, _, name = ast.unparse(call.func).rpartition(".")
    needed = {"device"} if name in WHOLE_NUMBERS else {"dtype", "device"}
    given = {keyword.arg for keyword in call.keywords}
    return owner == "torch" and name in WHOLE_NUMBERS | OF_ANY_DTYPE and needed - given


def test_new_tensors_name_their_dtype_and_device():
    found = [
        f"{path}:{call.lineno}: {ast.unparse(call)}"
        for path in sorted(Path(vqvae2_fast.__file__).parent.rglob("*.py"))
        for call in calls_of(ast.parse(path.read_text(encoding="utf-8")))
        if lacks_dtype_or_device(call)
    ]
    assert not found


@OTHER
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("by", ["owner", "reference"])
def test_operators(name, by, default):
    operator = OPERATORS[name]
    function = operator if by == "owner" else operator.reference
    for case in some_cases_of(operator):

        def make(case=case):
            arguments = list(case.make(torch.Generator().manual_seed(0)))
            for position in case.gradients:
                arguments[position].requires_grad_()
            return arguments

        def call(*arguments, case=case):
            with torch.set_grad_enabled(bool(case.gradients)):
                results = function(*arguments)
            if case.in_place:
                return [arguments[position] for position in case.in_place]
            results = results if isinstance(results, tuple) else (results,)
            if not case.gradients:
                return results
            loss = sum(result.double().sum() for result in results if result.requires_grad)
            leaves = [arguments[position] for position in case.gradients]
            return [*results, *torch.autograd.grad(loss, leaves)]

        check(make, call, default)


QUANTIZERS = {
    "ema": lambda: VectorQuantizerEMA(13, 8),
    "ema_rotation": lambda: VectorQuantizerEMA(13, 8, gradient="rotation"),
    "learnt": lambda: VectorQuantizer(13, 8),
    "learnt_cosine": lambda: VectorQuantizer(13, 8, metric="cosine"),
    "sim": lambda: SimVQ(13, 8),
    "bridge": lambda: VQBridge(16, 8, hidden_dim=8),
    "ibq": lambda: IBQ(13, 8),
    "fsq": lambda: FSQ([8, 5, 5, 3], embedding_dim=8),
    "lfq": lambda: LFQ(16, embedding_dim=8),
    "bsq": lambda: BSQ(16, embedding_dim=8),
    "residual": lambda: ResidualVQ(13, 8, num_quantizers=3, quantizer_dropout=True),
    "residual_fsq": lambda: ResidualFSQ([5, 5, 3], 2, embedding_dim=8),
    "grouped": lambda: GroupedResidualVQ(2, 13, 8, num_quantizers=2),
    "heads": lambda: MultiHeadVQ(2, 13, 8),
    "random": lambda: RandomProjectionQuantizer(13, 8, code_dim=5),
}


@OTHER
@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizers_in_training(name, default):
    def make():
        torch.manual_seed(0)
        return QUANTIZERS[name](), [torch.randn(40, 8) for _ in range(3)]

    def call(quantizer, batches):
        found = []
        for batch in batches:
            z = batch.requires_grad_()
            z_q, indices, loss = quantizer(z)
            if z_q.requires_grad:
                found.append(torch.autograd.grad(loss + z_q.square().sum(), z))
            found += [z_q, indices, loss, quantizer.perplexity]
        quantizer.eval()
        codes = quantizer.encode(batches[0])
        return [*found, codes, quantizer.lookup(codes), *quantizer.state_dict().values()]

    check(make, call, default)


def images():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@OTHER
def test_a_vqvae_trains_encodes_and_decodes(default):
    def make():
        vqvae = tiny_pipeline().vqvae.train()
        return vqvae, torch.optim.Adam(vqvae.parameters(), foreach=False), images()

    def call(vqvae, optimizer, x):
        for _ in range(2):
            output = vqvae(x)
            loss = vqvae.loss(x, output)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            vqvae.update_codebooks_()
        vqvae.eval()
        with torch.no_grad():
            codes = vqvae.encode(x)
            return [loss, codes, vqvae.decode(codes), *vqvae.state_dict().values()]

    check(make, call, default)


@OTHER
def test_a_prior_trains(default):
    def make():
        prior = tiny_prior(num_classes=3, condition_sizes=((2, 3),), dropout=0.1).train()
        return prior, prior_inputs(prior, 3)

    def call(prior, inputs):
        torch.manual_seed(1)
        nats = prior.mean_nats(inputs["codes"], inputs["condition"], inputs["labels"])
        nats.backward()
        return [nats, *(parameter.grad for parameter in prior.parameters())]

    check(make, call, default)


@OTHER
def test_models_are_saved_and_loaded(default, tmp_path):
    def call(pipeline):
        folder = tmp_path / str(len(os.listdir(tmp_path)))
        save(pipeline, folder)
        loaded = load(folder)
        models = [loaded.vqvae, *loaded.priors]
        return [value for model in models for value in model.state_dict().values()]

    check(lambda: [tiny_pipeline()], call, default)


def features(seed):
    return torch.rand(200, 5, generator=torch.Generator().manual_seed(seed))


MEASURES = {
    "frechet_distance": lambda x, y: metrics.frechet_distance(
        metrics.Moments.of([x]), metrics.Moments.of([y])
    ),
    "kernel_distance": metrics.kernel_distance,
    "neighbour_measures": metrics.neighbour_measures,
    "inception_score": lambda x, y: metrics.inception_score([x.log_softmax(1)]),
    "codebook_use": lambda x, y: metrics.codebook_use((13 * x).long(), 13),
    "collision_rate": lambda x, y: metrics.collision_rate((5 * x[:, :2]).long()),
    "marginal_entropy": lambda x, y: metrics.marginal_entropy((13 * x).long(), 13),
}


@OTHER
@pytest.mark.parametrize("name", MEASURES)
def test_measures_of_two_sets(name, default):
    check(lambda: (features(0), features(1)), MEASURES[name], default)


@OTHER
def test_measures_of_reconstructions(default):
    def make():
        generator = torch.Generator().manual_seed(0)
        pairs = [torch.rand(2, 3, 48, 48, generator=generator) * 2 - 1 for _ in range(2)]
        return tiny_pipeline().vqvae, images(), *pairs

    def call(vqvae, x, first, second):
        error = metrics.reconstruction_error(vqvae, [x])
        return [error, metrics.structural_similarity(first, second)]

    check(make, call, default)


@OTHER
def test_the_likelihood_of_codes(default):
    def make():
        prior = tiny_prior(num_classes=3)
        return prior, prior_inputs(prior, 3)

    def call(prior, inputs):
        return metrics.prior_likelihood(prior, [([inputs["codes"]], inputs["labels"])], level=0)

    check(make, call, default)


PORTED = {
    "kmeans": lambda: lucidrains.VectorQuantize(8, 13, kmeans_init=True),
    "restarts": lambda: lucidrains.VectorQuantize(8, 13, threshold_ema_dead_code=2),
    "residual": lambda: lucidrains.ResidualVQ(
        dim=8, num_quantizers=3, codebook_size=13, quantize_dropout=True
    ),
    "lfq": lambda: lucidrains.LFQ(dim=8, codebook_size=16, frac_per_sample_entropy=0.5),
    "fsq": lambda: lucidrains.FSQ([8, 5, 5, 3], dim=8),
    "sim": lambda: lucidrains.SimVQ(dim=8, codebook_size=13),
}


@OTHER
@pytest.mark.parametrize("name", PORTED)
def test_ported_quantizers_in_training(name, default):
    def make():
        torch.manual_seed(0)
        return PORTED[name](), [torch.randn(2, 40, 8) for _ in range(2)]

    def call(quantizer, batches):
        random.seed(0)
        torch.manual_seed(1)
        found = [value for z in batches for value in quantizer(z) if value is not None]
        return [*found, *quantizer.state_dict().values()]

    check(make, call, default)


@OTHER
@pytest.mark.parametrize("engine", ["auto", "eager", "reference"])
def test_codes_are_drawn_and_scored(engine, default):
    def make():
        prior = tiny_prior(num_classes=3, size=(2, 3), condition_sizes=((1, 3),))
        return prior, prior_inputs(prior, 2)

    def call(prior, inputs):
        context = {"condition": inputs["condition"], "labels": inputs["labels"], "engine": engine}
        drawn = sample_codes(
            prior, 2, top_p=0.9, guidance_scale=2, return_log_prob=True, first_sample=3, **context
        )
        return [*drawn, score_codes(prior, inputs["codes"], **context)]

    check(make, call, default)


@OTHER
@NATIVE
def test_codes_are_drawn_by_int8(default):
    def make():
        prior = tiny_prior(num_classes=3)
        return prior, prior_inputs(prior, 3)

    def call(prior, inputs):
        calibrate(prior, [(inputs["codes"], inputs["condition"], inputs["labels"])])
        return sample_codes(prior, 3, labels=inputs["labels"], engine="cpu_w8a8")

    check(make, call, default)


@OTHER
def test_images_are_drawn_and_filled(default):
    def make():
        mask = torch.zeros(16, 16, dtype=torch.bool)
        mask[4:9, 4:9] = True
        return tiny_pipeline(num_subclasses=2), images(), mask

    def call(pipeline, x, mask):
        batches = list(stream_images(pipeline, 3, batch_size=2, labels=[0, 2, None]))
        return [
            sample_images(pipeline, 2, labels=[1, None]),
            *[part for batch in batches for part in (batch.images, *batch.codes)],
            *fill(pipeline, x, mask, candidates=2, labels=[0, 1, 2, 2, 1, 0]),
        ]

    check(make, call, default)


@OTHER
@NATIVE
def test_images_are_compressed_and_read_again(default):
    def make():
        return tiny_pipeline(), images(), torch.nn.functional.pad(images()[:1], (0, 7))

    def call(pipeline, x, wide):
        labelled = codec.encode_images(pipeline, x, labels=[0, 1, 2, 2, 1, 0])
        untold = codec.encode_images(pipeline, wide)
        files = [labelled, untold]
        return [*files, *[codec.decode_images(pipeline, data) for data in files]]

    check(make, call, default)


@OTHER
def test_codes_and_labels_are_stored_and_read_in_batches(default, tmp_path):
    def call(codes, labels):
        folder = tmp_path / str(len(os.listdir(tmp_path)))
        with CodeWriter(folder, 13, [(3, 3)], class_names=("a", "b")) as writer:
            writer.add(codes, labels)
        store = CodeStore(folder)
        batches = [*codes_in_order(store, 4), store.batch(torch.tensor([3, 1], device="cpu"))]
        return [value for maps, own in batches for value in (*maps, own)]

    check(lambda: ([torch.arange(54).view(6, 3, 3) % 13], torch.arange(6) % 2), call, default)
